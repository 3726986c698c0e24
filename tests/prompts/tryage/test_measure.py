from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crossroads.prompts.tryage.measure import choice_figures, excess_over_mixing, one_hot

LOSSES = np.array([[1.0, 2.0, 3.0], [4.0, 1.0, 1.0]])


def test_figures_by_hand() -> None:
    found = choice_figures(one_hot(np.array([1, 2]), 3), LOSSES, best_single=1)
    assert found.loss == 1.5
    assert found.regret == 0.5
    assert found.agreement == 0.5  # the second prompt has two best experts
    assert found.gap_closed == 0.0  # the best single expert loses 1.5, too


@given(hnp.arrays(np.float64, (5, 4), elements=st.floats(0, 9, width=16)), st.integers(0, 3))
def test_the_oracle_has_no_regret_and_agrees(losses: np.ndarray, single: int) -> None:
    found = choice_figures(one_hot(losses.argmin(axis=1), 4), losses, best_single=single)
    assert found.regret == pytest.approx(0.0, abs=1e-9)
    assert found.agreement == 1.0
    assert found.gap_closed is None or found.gap_closed == pytest.approx(1.0)


def test_chance_is_the_mean_over_experts() -> None:
    found = choice_figures(np.full((2, 3), 1 / 3), LOSSES, best_single=0)
    assert found.loss == pytest.approx(2.0)
    assert found.agreement == pytest.approx((1 / 3 + 2 / 3) / 2)


def test_no_gap_has_no_share_closed() -> None:
    equal = np.ones((3, 2))
    assert choice_figures(np.full((3, 2), 0.5), equal, best_single=0).gap_closed is None


def test_a_mixture_has_no_excess_over_mixing_and_what_is_below_has_less() -> None:
    sizes, losses = np.array([1.0, 2.0, 4.0]), np.array([3.0, 2.9, 1.0])
    points = np.array([1.0, 2.5, 4.0])
    line = 3.0 - 2.0 * (points - 1.0) / 3.0  # of the smallest and the largest: the middle is above
    np.testing.assert_allclose(excess_over_mixing(points, line, sizes, losses), 0.0, atol=1e-9)
    np.testing.assert_allclose(excess_over_mixing(points, line - 0.2, sizes, losses), -0.2)
    assert (excess_over_mixing(points, line + 0.1, sizes, losses) > 0).all()
