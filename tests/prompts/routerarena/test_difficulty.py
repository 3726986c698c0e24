from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError
from crossroads.prompts.routerarena.difficulty import (
    LEVELS,
    CutOffs,
    difficulty_levels,
    solve_rates,
)


def test_levels_follow_the_share_of_models_that_solve() -> None:
    score = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]], dtype=np.float32)
    assert difficulty_levels(score) == ["easy", "hard", "easy", "hard"]
    four = np.array([[1, 1, 0, 0]], dtype=np.float32)
    assert difficulty_levels(four) == ["medium"]


def test_only_models_that_were_run_count_and_a_part_of_the_score_does_not_solve() -> None:
    score = np.array([[1, np.nan, np.nan], [np.nan, np.nan, np.nan], [0.99, 0.99, 0.99]])
    assert difficulty_levels(score) == ["easy", "", "hard"]
    np.testing.assert_array_equal(solve_rates(score), [1.0, np.nan, 0.0])


def test_cut_offs_can_be_chosen_and_kept() -> None:
    cut = CutOffs(easy=0.9, hard=0.1, solved=0.5)
    assert difficulty_levels(np.array([[0.6, 0.2]]), cut) == ["medium"]
    assert CutOffs(**cut.to_dict()) == cut
    with pytest.raises(InputError, match="hard < easy"):
        CutOffs(easy=0.2, hard=0.4)


@given(st.integers(1, 6), st.integers(0, 6))
def test_more_solvers_are_never_harder(num_models: int, num_solving: int) -> None:
    solving = min(num_solving, num_models)
    fewer = np.array([[1.0] * solving + [0.0] * (num_models - solving)])
    more = np.array(
        [[1.0] * min(solving + 1, num_models) + [0.0] * max(num_models - solving - 1, 0)]
    )
    order = [LEVELS.index(level) for level in difficulty_levels(np.vstack([fewer, more]))]
    assert order[1] <= order[0]
