"""The arena measures what was measured before by other code on the same data.

Figures of random halves of MMLU-Pro and RouteLLM's MMLU table, three seeds each; the splits here
are other ones, so they agree to about a point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from crossroads.core.arena import Leaderboard, run_arena
from crossroads.core.errors import CrossroadsError
from crossroads.datasets.paths import data_folder
from crossroads.prompts import tasks
from crossroads.prompts.metrics import apgr
from crossroads.prompts.readers import read_outcomes
from crossroads.prompts.router import PromptRouter, Queries, TrainingSet, column_means
from crossroads.prompts.tasks import prompt_task
from tests.prompts.toy_routers import Means, build_toy


@dataclass(kw_only=True)
class KnownCategory(Means):
    """Mean score of each model in the prompt's true category: category routing's best case."""

    name = "known-category"
    hindsight = True  # no prompt that is served says of which category it is
    needs = "the outcomes to come"

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        assert data.domains is not None
        self.means = {d: column_means(data.scores[data.domains == d]) for d in set(data.domains)}

    def _predict(self, queries: Queries) -> Any:
        assert queries.domains is not None
        return np.array([self.means[d] for d in queries.domains])


def build(spec: str) -> PromptRouter:
    return KnownCategory() if spec == KnownCategory.name else build_toy(spec)


@pytest.fixture
def measured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Leaderboard:
    monkeypatch.setattr(tasks, "build_router", build)
    task = prompt_task(read_outcomes(request.param), train_share=0.5, missing="wrong")
    return run_arena(task, [KnownCategory.name], seeds=3, jobs=1)


@pytest.mark.parametrize(
    ("measured", "best_single", "known_category", "oracle"),
    [
        ("mmlu-pro", 0.7015, 0.7183, 0.9469),
        ("mmlu-pro:complete", 0.6267, 0.6267, 0.9235),
        ("mmlu-pro:small", 0.4404, 0.4632, 0.8210),
    ],
    indirect=["measured"],
)
def test_mmlu_pro(
    measured: Leaderboard, best_single: float, known_category: float, oracle: float
) -> None:
    found = {row.router: row.metrics["quality"].mean for row in measured.rows}
    assert found["best-single"] == pytest.approx(best_single, abs=0.006)
    assert found["known-category"] == pytest.approx(known_category, abs=0.006)
    assert found["oracle"] == pytest.approx(oracle, abs=0.005)
    gains = measured["known-category"].metrics["gain_over_best_single"].per_seed
    if known_category > best_single:
        assert all(gain is not None and gain > 0.5 for gain in gains)
    else:
        assert gains == pytest.approx((0.0, 0.0, 0.0), abs=0.1)
    over_mix = measured["known-category"].metrics["gain_over_mix"].per_seed
    assert all(gain is not None and gain > 0 for gain in over_mix)


@pytest.fixture(scope="module")
def mmlu() -> Any:
    try:
        folder = data_folder("routellm_mmlu_gsm8k")
    except CrossroadsError as error:
        pytest.skip(str(error))
    table = read_outcomes(folder)
    assert table.domain is not None
    return table.take(table.domain != "gsm8k")


@pytest.mark.parametrize("seed", range(3))
def test_apgr_on_routellms_mmlu_table(mmlu: Any, seed: int) -> None:
    weak, strong = np.argsort(np.nanmean(mmlu.score, axis=0))
    train, test = mmlu.split_by_hash(seed, 0.5)
    gain = mmlu.score[:, strong] - mmlu.score[:, weak]
    by_subject = {d: gain[train][mmlu.domain[train] == d].mean() for d in set(mmlu.domain[train])}
    outcome = mmlu.score[test, weak], mmlu.score[test, strong]

    two_step = apgr(*outcome, np.array([by_subject[d] for d in mmlu.domain[test]]))
    assert two_step == pytest.approx(0.685, abs=0.03)  # measured before: .687 / .676 / .694
    random = apgr(*outcome, np.random.default_rng(seed).random(len(test)))
    assert random == pytest.approx(0.5, abs=0.05)
    oracle = apgr(*outcome, gain[test])
    assert oracle == pytest.approx(1.295, abs=0.06)  # measured before: 1.28 to 1.31


def test_the_oracles_apgr_follows_from_the_four_counts(mmlu: Any) -> None:
    weak, strong = mmlu.score[:, 0], mmlu.score[:, 1]
    n, only_strong, only_weak = len(mmlu), 2497, 742
    assert (n, strong.sum() - weak.sum()) == (14042, only_strong - only_weak)
    # The curve rises while the strong model alone is right, is flat, and falls at the end.
    both_same = n - only_strong - only_weak
    area = (
        only_strong**2 / 2 + only_strong * both_same + only_weak * (2 * only_strong - only_weak) / 2
    )
    exact = area / n / (only_strong - only_weak)
    assert apgr(weak, strong, strong - weak) == pytest.approx(exact, abs=1e-3)
