"""Which prompts are learnt from and which are judged.

Three ways: by a hash of the prompt (copies of a prompt stay together), as the table's own ``split``
column says, or by domain, so that the judged prompts are of domains nobody has learnt from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.prompts.outcomes import OutcomeTable, prompt_hash, unit_hash
from crossroads.prompts.router import Queries, TrainingSet

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SplitBy = Literal["prompt", "domain"]


@dataclass(frozen=True, kw_only=True)
class Split:
    """One seed: what may be learnt from, and what is judged."""

    rows: Ints  # (N,) of the judged prompts in the table
    training: TrainingSet
    queries: Queries  # as a router with hindsight may see them; see ``asked``
    score: Float32  # (N, K), no NaN
    cost: Float64 | None  # (N, K) in cost_unit, no NaN
    cost_unit: str
    expected_cost: Float64  # (K,) mean cost in training, all the rule knows; 0 without prices
    best_single: int  # by mean score in training
    difficulty: npt.NDArray[np.object_]  # (N,) level of each judged prompt

    def asked(self, *, hindsight: bool) -> Queries:
        """Return the judged prompts; what a served prompt does not carry only with hindsight."""
        if hindsight:
            return self.queries
        return replace(self.queries, truth=None, domains=None, chance=None)

    def without_model(self, k: int) -> Split:
        """Return the same prompts with one model gone from the pool."""
        rest = np.delete(np.arange(self.score.shape[1]), k)
        data = self.training
        training = replace(
            data,
            models=tuple(data.models[j] for j in rest),
            scores=data.scores[:, rest],
            costs=data.costs[:, rest],
        )
        truth = self.queries.truth
        return replace(
            self,
            training=training,
            queries=replace(self.queries, truth=None if truth is None else truth[:, rest]),
            score=self.score[:, rest],
            cost=None if self.cost is None else self.cost[:, rest],
            expected_cost=self.expected_cost[rest],
            best_single=int(training.mean_scores().argmax()),
        )


def split_rows(
    table: OutcomeTable,
    seed: int,
    *,
    by: SplitBy = "prompt",
    train_share: float = 0.7,
    max_train: int | None = None,
) -> tuple[Ints, Ints]:
    """Return (training rows, judged rows) of one seed.

    ``max_train`` keeps at most so many training prompts, chosen by hash. Raises InputError where a
    side would be empty, or where domains are asked for and the table has fewer than two.
    """
    if by == "domain":
        train, test = _by_domain(table, seed, train_share)
    else:
        train, test = table.split_by_hash(seed, train_share)
    if max_train is not None and len(train) > max_train:
        order = np.argsort(unit_hash(table.prompt_hash[train], seed + 1_000_003), kind="stable")
        train = np.sort(train[order[:max_train]])
    return train, test


def _by_domain(table: OutcomeTable, seed: int, train_share: float) -> tuple[Ints, Ints]:
    """Hold whole domains out until about ``1 - train_share`` of the prompts are."""
    if table.domain is None:
        raise InputError(
            "the table has no domains to hold out; add a 'domain' column, or split by prompt"
        )
    names, which, counts = np.unique(
        table.domain.astype(np.str_), return_inverse=True, return_counts=True
    )
    if len(names) < 2:
        raise InputError(
            f"the table has one domain, {str(names[0])!r:.60}: none can be held out; "
            "split by prompt"
        )
    hashes = np.array([prompt_hash(str(name)) for name in names], dtype=np.uint64)
    order = np.argsort(unit_hash(hashes, seed), kind="stable")
    held = np.zeros(len(names), dtype=bool)
    wanted = (1 - train_share) * len(table)
    for domain in order[:-1]:  # one domain at least is learnt from
        if held.any() and counts[held].sum() + counts[domain] / 2 > wanted:
            continue
        held[domain] = True
    is_test = held[which]
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)
