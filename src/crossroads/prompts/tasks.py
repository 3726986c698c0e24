"""The arena's task for prompts: fit a router on recorded outcomes, judge it on held-out prompts.

Nothing is sent to a language model: the score and the cost of every answer are in the outcome table
and are replayed. A router sees the training prompts only; models are compared, and the best single
model is chosen, on the training prompts too.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

import crossroads
from crossroads.core.arena import Cell, Leaderboard, Metric
from crossroads.core.errors import InputError, UsageError
from crossroads.core.provenance import machine
from crossroads.prompts.arena_metrics import (
    CALIBRATION,
    LATENCY,
    QUALITY,
    REGRET,
    ROBUSTNESS,
    TWO_MODELS,
    cost_metrics,
)
from crossroads.prompts.baselines import baseline_names
from crossroads.prompts.decide import Argmax
from crossroads.prompts.features import queries, table_features, training_set
from crossroads.prompts.judge import judge, model_shares, quality_by, time_decisions
from crossroads.prompts.metrics import chosen_values
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.perturbed import PerturbedPrompts, perturb_prompts
from crossroads.prompts.router import PromptRouter, Queries, column_means
from crossroads.prompts.routerarena.difficulty import difficulty_levels
from crossroads.prompts.routers import build_router
from crossroads.prompts.splits import Split, SplitBy, split_rows
from crossroads.prompts.staging import StagedTable
from crossroads.prompts.taxonomy import knowledge

if TYPE_CHECKING:
    from crossroads.core.progress import Progress
    from crossroads.core.report import Plot

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Missing = Literal["drop", "wrong"]

BLOCK = 16_384  # prompts decided at a time


def prompt_task(
    table: OutcomeTable,
    *,
    name: str = "prompts",
    pool: str = "",
    encoder: str = "static",
    train_share: float = 0.7,
    split_by: SplitBy = "prompt",
    max_train: int | None = None,
    missing: Missing = "drop",
    num_perturbed: int = 300,
    remarks: Sequence[str] = (),
    progress: Progress | None = None,
) -> PromptTask:
    """Return the task of a table, encoding its prompts first where it carries no embeddings.

    ``num_perturbed`` prompts, chosen by hash, are also encoded with their texts perturbed; 0, or a
    table without texts, leaves robustness out. ``progress`` is told of texts encoded and in all.
    Raises InputError where there is neither text nor embeddings.
    """
    return PromptTask(
        table=replace(table, embeddings={encoder: table_features(table, encoder, progress)}),
        perturbed=perturb_prompts(table, encoder, num_perturbed),
        name=name,
        pool=pool,
        encoder=encoder,
        train_share=train_share,
        split_by=split_by,
        max_train=max_train,
        missing=missing,
        remarks=tuple(remarks),
    )


@dataclass(frozen=True, kw_only=True)
class PromptTask:
    """Routing the prompts of one outcome table.

    Parameters
    ----------
    table : carries the embeddings of ``encoder``
    name, pool : what the table and the pool of models are called in reports
    train_share : share of prompts to learn from, in (0, 1); a ``split`` column overrules it
    split_by : ``prompt``, or ``domain`` to judge on domains that nobody has learnt from
    max_train : most prompts to learn from
    perturbed : prompts whose texts were perturbed, to see which choices stay
    missing : ``drop`` judges on the prompts every model was run on; ``wrong`` counts a model that
        was not run as score 0 at its mean cost, in training as well
    remarks : added to the notes, for instance where the prices come from
    """

    table: OutcomeTable
    name: str = "prompts"
    pool: str = ""
    encoder: str = "static"
    train_share: float = 0.7
    split_by: SplitBy = "prompt"
    max_train: int | None = None
    perturbed: PerturbedPrompts | None = None
    missing: Missing = "drop"
    remarks: tuple[str, ...] = ()

    family = "prompts"
    evidence = "replayed outcomes"

    def __post_init__(self) -> None:
        if self.missing not in ("drop", "wrong"):
            raise UsageError(f"missing: expected drop or wrong, got {self.missing!r}")
        if not 0 < self.train_share < 1:
            raise UsageError(f"train share: expected between 0 and 1, got {self.train_share!r}")
        if self.split_by not in get_args(SplitBy):
            raise UsageError(f"split: expected prompt or domain, got {self.split_by!r}")
        if self.max_train is not None and self.max_train < 1:
            raise UsageError(f"max train: expected at least 1, got {self.max_train!r}")
        if self.encoder not in self.table.embeddings:
            raise InputError(
                f"the table carries no {self.encoder!r} embeddings; build the task by prompt_task()"
            )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        cost = cost_metrics(self.table.cost_unit) if self.is_priced else ()
        two = TWO_MODELS if len(self.table.models) == 2 else ()
        robustness = () if self.perturbed is None else ROBUSTNESS
        return (*QUALITY, *cost, *REGRET, *two, *LATENCY, *CALIBRATION, *robustness)

    @property
    def baselines(self) -> tuple[str, ...]:
        return baseline_names(self.table, is_priced=self.is_priced)

    @property
    def description(self) -> str:
        n, k = self.table.score.shape
        pool = f" of pool {self.pool}" if self.pool else ""
        if self.split_by == "domain":
            split = f"about {1 - self.train_share:.0%} judged, all of domains not learnt from"
        elif self.table.split is None:
            split = f"{self.train_share:.0%} to learn from, split by hash of the prompt"
        else:
            split = "split as the table says"
        if self.max_train is not None:
            split += f", at most {self.max_train:,} to learn from"
        source = f"{self.table.source}; " if self.table.source else ""
        return f"{source}{n:,} prompts x {k} models{pool}; {split}; {self.encoder} embeddings"

    @cached_property
    def unpriced(self) -> tuple[str, ...]:
        """The models of which no answer has a known cost."""
        cost = self.table.cost
        if cost is None:
            return self.table.models
        gone = np.isnan(cost).all(axis=0)
        return tuple(self.table.models[k] for k in np.flatnonzero(gone))

    @property
    def is_priced(self) -> bool:
        return not self.unpriced

    @property
    def notes(self) -> tuple[str, ...]:
        table, found = self.table, list(self.remarks)
        gaps = int((~table.complete).sum())
        if gaps and self.missing == "drop":
            found.append(
                f"{gaps:,} of {len(table):,} prompts were not answered by every model: "
                "learnt from, not judged"
            )
        elif gaps:
            found.append(
                f"{gaps:,} of {len(table):,} prompts were not answered by every model: "
                "a missing answer counts as wrong, at the model's mean cost"
            )
        if table.split is not None and self.split_by == "prompt":
            found.append(
                "the split is the table's own: seeds vary the router's randomness only, "
                "intervals do not cover the choice of prompts"
            )
        if not self.is_priced:
            which = "any model" if table.cost is None else ", ".join(self.unpriced)
            found.append(
                f"no cost is known of {which} (that takes a 'cost' column, or token counts and a "
                "priced pool): cost figures are left out"
            )
        elif table.cost is not None:
            unknown = int((np.isnan(table.cost) & ~np.isnan(table.score)).sum())
            if unknown:
                found.append(f"{unknown:,} answers of unknown cost count at the model's mean cost")
        if self.perturbed is not None:
            found.append(
                f"robustness is read off {len(self.perturbed):,} prompts perturbed by rules "
                "(typos, grammar, synonyms, reordering), not by a language model"
            )
        found.append(
            "latency is the routing decision alone with the prompt's features given; "
            "encoding the prompt comes on top"
        )
        return tuple(found)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the table, the settings, this library's code and the versions it runs on."""
        digest = hashlib.blake2b(digest_size=10)
        settings: list[Any] = [self.pool, self.encoder, self.train_share, self.missing]
        settings += [self.split_by, self.max_train, self.table.models, self.table.cost_unit]
        digest.update(json.dumps([_code_digest(), machine()["versions"], *settings]).encode())
        arrays = {n: v for n, v in vars(self.table).items() if isinstance(v, np.ndarray)}
        arrays["features"] = self._features
        if isinstance(self.table, StagedTable):  # its digest stands for all of its arrays
            digest.update(self.table.digest.encode())
            arrays = {}
        if self.perturbed is not None:
            arrays["perturbed"] = self.perturbed.embeddings
        for name, array in arrays.items():
            # Arrays of text hold references: their bytes say nothing.
            plain = (
                "\0".join(map(str, array)).encode() if array.dtype == object else array.tobytes()
            )
            digest.update(f"{name} {array.dtype} {array.shape} ".encode() + plain)
        return digest.hexdigest()

    def identify(self, router: str) -> str:
        """Return router, version and, for other packages' routers, a digest of their module."""
        built = build_router(router)
        module = inspect.getmodule(type(built))
        source = "" if module is None else _source_outside(module.__name__, module.__file__)
        return f"{router} v{type(built).version}{source}"

    def run(self, router: str, seed: int) -> Cell:
        """Fit one router on the training side of a seed's split and judge it on the other."""
        split = self.split_of(seed)
        built = build_router(router)
        started = time.perf_counter()
        built.fit(split.training, seed=seed)
        fit_seconds = time.perf_counter() - started
        asked = split.asked(hindsight=built.hindsight)
        started = time.perf_counter()
        estimate = _predict(built, asked)
        choice = Argmax().choose(estimate, split.expected_cost)
        decide_seconds = (time.perf_counter() - started) / len(asked)
        # A bound that admits lucky guesses states what a right choice is worth; see the router.
        credit: Callable[[Queries], Float64] | None = getattr(built, "credit", None)
        worth = split.score if credit is None else np.asarray(credit(asked), dtype=np.float64)
        blind = not built.hindsight
        metrics, curves = judge(split, estimate, choice, worth, checked=blind)
        if blind and self.perturbed is not None:
            metrics["robustness"] = self.perturbed.robustness(built, split, choice)
        undefined = {metric.name: math.nan for metric in self.metrics if metric.name not in metrics}
        value = chosen_values(worth, choice)
        return Cell(
            metrics={
                **undefined,
                **metrics,
                **time_decisions(built, asked, split.expected_cost),
            },
            fit_seconds=fit_seconds,
            decide_seconds=decide_seconds,
            curves=curves,
            notes={
                "hindsight": built.hindsight,
                "told": knowledge(built),
                "num_train": len(split.training),
                "num_judged": len(asked),
                "best_single": self.table.models[split.best_single],
                "models": list(self.table.models),
                "shares": model_shares(self.table.models, choice),
                "domains": quality_by(split.queries.domains, value),
                "difficulties": quality_by(split.difficulty, value),
            },
        )

    def plots(self, board: Leaderboard) -> Sequence[Plot]:
        """Return the frontier, the gains, the domains and the latencies."""
        from crossroads.prompts.plots import prompt_plots

        return prompt_plots(board, cost_unit=self.table.cost_unit)

    def _difficulty(self, score_NK: Float32, test: Ints) -> npt.NDArray[np.object_]:
        """Return the table's own levels, else how large a share of the pool solves each prompt."""
        if self.table.difficulty is not None:
            return self.table.difficulty[test]
        return np.array(difficulty_levels(score_NK), dtype=object)

    @property
    def _features(self) -> Float32:
        return self.table.embeddings[self.encoder]

    def split_of(self, seed: int) -> Split:
        """Return what one seed learns from and is judged on."""
        train, test = split_rows(
            self.table,
            seed,
            by=self.split_by,
            train_share=self.train_share,
            max_train=self.max_train,
        )
        score, cost = self.table.score, self.table.cost if self.is_priced else None
        if self.missing == "wrong":
            score = np.nan_to_num(score, nan=0.0)
        else:
            test = test[self.table.complete[test]]
        if len(test) == 0:
            raise InputError(
                "no test prompt was answered by every model; leave models out with --models, or "
                "count missing answers as wrong with --missing wrong"
            )
        expected = _expected_cost(cost, train, len(self.table.models))
        if cost is not None and self.missing == "wrong":
            cost = np.where(np.isnan(cost), expected, cost)
        test_cost = None if cost is None else np.where(np.isnan(cost[test]), expected, cost[test])
        filled = replace(self.table, score=score, cost=cost)
        training = training_set(filled, train, self._features)
        return Split(
            rows=test,
            difficulty=self._difficulty(score[test], test),
            training=training,
            queries=queries(filled, test, self._features, hindsight=True),
            score=score[test],
            cost=test_cost,
            cost_unit=self.table.cost_unit,
            expected_cost=expected,
            best_single=int(training.mean_scores().argmax()),
        )


def _predict(router: PromptRouter, asked: Queries) -> Float64:
    """Return the estimates, made block by block: what routers derive from prompts is large."""
    blocks = [asked.take(slice(i, i + BLOCK)) for i in range(0, len(asked), BLOCK)]
    return np.concatenate([router.predict(block) for block in blocks])


def _expected_cost(cost: Float64 | None, train: Ints, num_models: int) -> Float64:
    """Return the mean training cost of each model, shape (K,); 0 without prices.

    A model whose cost is known on no training prompt would look free: the whole table's mean then.
    """
    if cost is None:
        return np.zeros(num_models)
    known = np.isfinite(cost[train]).any(axis=0)
    return np.where(known, column_means(cost[train]), column_means(cost))


@cache
def _code_digest() -> str:
    """Digest of the source of this library that an arena's figures depend on."""
    digest = hashlib.blake2b(digest_size=10)
    root = Path(crossroads.__file__).parent
    for room in ("core", "prompts"):
        for file in sorted((root / room).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def _source_outside(module: str, file: str | None) -> str:
    """Return a digest of a module that is not part of this library, else nothing."""
    if module.startswith("crossroads.") or file is None or not Path(file).is_file():
        return ""
    return " " + hashlib.blake2b(Path(file).read_bytes(), digest_size=10).hexdigest()
