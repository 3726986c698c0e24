"""What `auto` promises on the shipped tables, three seeds. Measured: benchmarks/prompts/arenas.py.

The floors lie a little under the measured figures, so that another BLAS does not fail them.
"""

from __future__ import annotations

import pytest

from crossroads.core.arena import Leaderboard, run_arena
from crossroads.prompts import read_outcomes
from crossroads.prompts.tasks import prompt_task


def board(pool: str) -> Leaderboard:
    return run_arena(prompt_task(read_outcomes(f"mmlu-pro:{pool}")), ["auto"], seeds=3, jobs=1)


@pytest.mark.slow
def test_where_one_model_is_best_at_everything_auto_loses_nothing() -> None:
    gain = board("complete")["auto"].metrics["gain_over_best_single"]
    assert gain.mean is not None
    assert gain.mean >= -0.1


@pytest.mark.slow
def test_where_models_differ_auto_gains_and_saves_on_every_seed() -> None:
    auto = board("served")["auto"].metrics
    assert min(auto["gain_over_best_single"].per_seed) > 0.6
    assert auto["gain_over_best_single"].mean > 0.9
    assert auto["aiq"].mean > 68.3
    assert max(auto["cost_at_equal_quality"].per_seed) <= 0.80
