from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.composition import choose_threshold, confidence

SURE, EVEN = [1.0, 0.0, 0.0, 0.0], [0.25] * 4


def test_certainty_is_one_and_ignorance_is_the_least() -> None:
    p = np.array([SURE, EVEN])
    np.testing.assert_allclose(confidence(p), [1.0, 0.25])
    np.testing.assert_allclose(confidence(p, "entropy"), [1.0, 0.0], atol=1e-12)


def test_a_single_category_is_certain() -> None:
    for measure in ("share", "entropy"):
        assert confidence(np.ones((2, 1)), measure).tolist() == [1.0, 1.0]


def test_entropy_of_two_of_four_is_half() -> None:
    np.testing.assert_allclose(confidence(np.array([[0.5, 0.5, 0, 0]]), "entropy"), [0.5])


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown confidence measure 'shares'; did you mean"):
        confidence(np.array([SURE]), "shares")


def test_the_threshold_parts_those_better_served_by_the_general_expert() -> None:
    sure = np.linspace(0, 1, 100)
    tau = choose_threshold(sure, routed_N=sure >= 0.4, general_N=sure < 0.4)
    assert 39 / 99 < tau < 40 / 99


def test_nobody_is_sent_where_it_gains_nothing_and_everybody_where_it_always_does() -> None:
    sure = np.linspace(0, 1, 50)
    assert choose_threshold(sure, np.ones(50), np.zeros(50)) == 0.0
    assert choose_threshold(sure, np.zeros(50), np.ones(50)) == np.inf
    assert choose_threshold(sure, np.ones(50), np.ones(50)) == 0.0


def test_a_gain_within_its_standard_error_is_none() -> None:
    sure = np.linspace(0, 1, 100)
    gain = np.where(np.arange(100) % 2 == 0, 1.0, -1.0)  # up, down: never more than one ahead
    assert choose_threshold(sure, np.zeros(100), gain) == 0.0


def test_equal_confidences_are_never_parted() -> None:
    sure = np.repeat([0.2, 0.8], 50)
    general = np.where(np.arange(100) < 40, 1.0, 0.0)
    assert choose_threshold(sure, np.zeros(100), general) in (0.5, np.inf)


def test_cells_that_were_not_run_are_left_out() -> None:
    nan = np.full(30, np.nan)
    assert choose_threshold(np.linspace(0, 1, 30), nan, np.ones(30)) == 0.0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_threshold_never_loses_on_the_prompts_it_was_chosen_on(
    rows: list[tuple[float, bool, bool]],
) -> None:
    sure, routed, general = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    tau = choose_threshold(sure, routed, general)
    assert np.where(sure < tau, general, routed).mean() >= routed.mean()


def test_lengths_that_disagree_are_refused() -> None:
    with pytest.raises(InputError, match="same prompts"):
        choose_threshold(np.ones(3), np.ones(2), np.ones(3))
