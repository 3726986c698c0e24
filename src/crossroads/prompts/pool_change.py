"""What a change of the pool does to a router: a model leaves, or one comes with few outcomes.

The survey "Doing More with Less" (arXiv 2502.00409) asks of every router what adding an expert
takes. Here a model, by default the one best in training, is taken out of the pool, and then comes
back with 30, 100, 300, 1,000 and all of its training outcomes; the router is fitted anew each time
and judged on the same prompts.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from crossroads.core.arena import Cell, Leaderboard, Metric
from crossroads.core.errors import unknown_name
from crossroads.prompts.decide import Argmax
from crossroads.prompts.judge import time_decisions
from crossroads.prompts.metrics import chosen_values
from crossroads.prompts.routers import build_router
from crossroads.prompts.splits import Split
from crossroads.prompts.tasks import PromptTask

if TYPE_CHECKING:
    from crossroads.core.report import Plot
    from crossroads.prompts.router import PromptRouter

Ints = npt.NDArray[np.int64]

EXAMPLES = (30, 100, 300, 1000)  # outcomes of the newcomer
FEW = 100
_ABSENT_AT = 10.0  # where a logarithmic axis shows the pool without the newcomer

METRICS = (
    Metric(
        name="quality_few",
        title=f"with {FEW}",
        digits=4,
        help=f"mean score of the choice when the newcomer has {FEW} training outcomes",
    ),
    Metric(
        name="quality_without",
        title="without",
        digits=4,
        help="mean score when the model is not in the pool",
    ),
    Metric(
        name="quality_full",
        title="with all",
        digits=4,
        help="mean score when all of the newcomer's training outcomes are there",
    ),
    Metric(
        name="shortfall_few",
        title=f"{FEW} v. all",
        unit="points",
        digits=2,
        help=f"100 x quality with {FEW} outcomes of the newcomer, less that with all: below 0, "
        "the router needs more of them",
    ),
    Metric(
        name="gain_without",
        title="gain w/o",
        unit="points",
        digits=2,
        help="100 x quality without the model, above the best single model of the rest",
    ),
    Metric(
        name="share_few",
        title="used",
        headline=False,
        help=f"share of prompts sent to the newcomer when it has {FEW} outcomes",
    ),
)


@dataclass(frozen=True, kw_only=True)
class PoolChangeTask:
    """A model leaves the pool of a prompt task and comes back.

    Parameters
    ----------
    base : table, split and encoder
    newcomer : the model; default the one best in training, which may differ from seed to seed
    """

    base: PromptTask
    newcomer: str | None = None

    family = "prompts"
    metrics = METRICS
    evidence = "replayed outcomes"

    def __post_init__(self) -> None:
        models = self.base.table.models
        if self.newcomer is not None and self.newcomer not in models:
            raise unknown_name("model", self.newcomer, models)

    @property
    def name(self) -> str:
        return f"{self.base.name}, a model comes and goes"

    @property
    def baselines(self) -> tuple[str, ...]:
        # The chance-aware bound has a credit of its own, which only the whole pool defines.
        return tuple(name for name in self.base.baselines if name != "oracle-chance-aware")

    @property
    def description(self) -> str:
        who = self.newcomer or "the model best in training"
        return f"{self.base.description}; {who} leaves and comes back"

    @property
    def notes(self) -> tuple[str, ...]:
        found = tuple(note for note in self.base.notes if "latency" not in note)
        if self.newcomer is not None:
            return found
        split = (self.base.split_of(seed) for seed in range(3))
        names = dict.fromkeys(s.training.models[s.best_single] for s in split)
        return (f"the model that leaves and comes back (seeds 0 to 2): {', '.join(names)}", *found)

    @property
    def fingerprint(self) -> str:
        return f"{self.base.fingerprint}-{(self.newcomer or '').encode().hex() or 'best'}"

    def identify(self, router: str) -> str:
        return self.base.identify(router)

    def run(self, router: str, seed: int) -> Cell:
        """Fit the router on each state of the pool and judge it on the same prompts."""
        split = self.base.split_of(seed)
        models = split.training.models
        k = split.best_single if self.newcomer is None else models.index(self.newcomer)
        rest = split.without_model(k)
        started = time.perf_counter()
        without, _ = _quality(router, rest, seed)
        sizes = [n for n in EXAMPLES if n < len(split.training)]
        curve = [[0.0, without]]
        shares = {}
        for n in sizes:
            quality, choice = _quality(router, _with_examples(split, k, n, seed), seed)
            curve.append([float(n), quality])
            shares[n] = float((choice == k).mean())
        built = build_router(router).fit(split.training, seed=seed)
        full, _ = _judge(built, split)
        curve.append([float(len(split.training)), full])
        few = {int(n): quality for n, quality in curve}.get(FEW, full)
        return Cell(
            metrics={
                "quality_few": few,
                "quality_without": without,
                "quality_full": full,
                "shortfall_few": 100 * (few - full),
                "gain_without": 100
                * (without - float(rest.score[:, rest.best_single].mean(dtype=np.float64))),
                "share_few": shares.get(FEW, float("nan")),
            },
            fit_seconds=time.perf_counter() - started,
            decide_seconds=1e-6
            * time_decisions(built, split.asked(hindsight=built.hindsight), split.expected_cost)[
                "latency_us_p50"
            ],
            curves={"added": curve},
            notes={"hindsight": built.hindsight, "newcomer": models[k]},
        )

    def plots(self, board: Leaderboard) -> Sequence[Plot]:
        """Return quality against the outcomes that are known of the newcomer."""
        from crossroads.core.report import CurvePlot, Series, role_of

        ran = [row for row in board.rows if row.error is None]
        if not ran:
            return []
        series = []
        for n, row in enumerate(sorted(ran, key=lambda row: role_of(row) != "router")):
            shortest = min(len(cell.curves["added"]) for cell in row.cells)
            points = np.mean([cell.curves["added"][:shortest] for cell in row.cells], axis=0)
            series.append(
                Series(
                    name=row.router,
                    x=list(np.maximum(points[:, 0], _ABSENT_AT)),
                    y=list(points[:, 1]),
                    role=role_of(row),
                    marks=True,
                    hidden=n >= 8 or role_of(row) == "bound",
                )
            )
        return [
            CurvePlot(
                title="Quality as the newcomer gets known",
                caption=(
                    "Mean score on the judged prompts against the number of training outcomes of "
                    "the model that comes to the pool; 0: it is not there. Mean over seeds."
                ),
                x_label="outcomes of the newcomer (0 stands at 10)",
                y_label="quality",
                series=series,
                log_x=True,
            )
        ]


def _with_examples(split: Split, k: int, num: int, seed: int) -> Split:
    """Return the split with ``num`` training outcomes of model k left, the same for all routers."""
    scores, costs = split.training.scores.copy(), split.training.costs.copy()
    known = np.flatnonzero(np.isfinite(scores[:, k]))
    kept = np.random.default_rng(seed).permutation(known)[:num]
    gone = np.setdiff1d(known, kept)
    scores[gone, k] = np.nan
    costs[gone, k] = np.nan
    training = dataclasses.replace(split.training, scores=scores, costs=costs)
    return dataclasses.replace(split, training=training)


def _quality(router: str, split: Split, seed: int) -> tuple[float, Ints]:
    return _judge(build_router(router).fit(split.training, seed=seed), split)


def _judge(router: PromptRouter, split: Split) -> tuple[float, Ints]:
    """Return the mean score of the choice, and the choice, shape (N,)."""
    estimate = router.predict(split.asked(hindsight=router.hindsight))
    choice = Argmax().choose(estimate, split.expected_cost)
    return float(chosen_values(split.score, choice).mean()), choice
