"""Thresholds of a cascade, from calibration prompts: for an accuracy target or for a budget.

What a cascade earns and costs depends on a prompt only through which thresholds its answers reach.
So all combinations of candidate thresholds are judged at once by cumulative sums over a histogram
of L - 1 dimensions. Candidates are all distinct values of the verifier (the search is then exact;
always so for two models) up to ``MOST_CELLS`` combinations, beyond that evenly spaced quantiles.

Shapes: N prompts, K models of the pool, L of them in the cascade, C candidates of a threshold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, UsageError
from crossroads.core.preference import upper_hull
from crossroads.prompts.cascade.chain import Acceptance, Cascade, acceptance_of, checked

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_CELLS = 65_536  # combinations of thresholds judged for one order of models
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A cascade and what it gave on the calibration prompts: mean score, mean cost of a prompt."""

    cascade: Cascade
    quality: float
    cost: float


def chains(cost_K: npt.ArrayLike, *, most_models: int = 2) -> list[tuple[int, ...]]:
    """Return every set of 1 to ``most_models`` models, each in order of cost, then of column."""
    cost = np.asarray(cost_K, dtype=np.float64)
    order = np.argsort(cost, kind="stable").tolist()
    sizes = range(1, min(most_models, len(order)) + 1)
    return [chain for size in sizes for chain in combinations(order, size)]


def fit_cascade(
    score_NK: Float,
    cost_NK: Float,
    acceptance_NK: Float,
    *,
    order: Sequence[int],
    min_quality: float | None = None,
    max_usd: float | None = None,
) -> Calibrated:
    """Return the best thresholds for one order of models on calibration prompts.

    Exactly one goal is given: ``min_quality``, the mean score to reach at least cost, or
    ``max_usd``, the mean cost of a prompt (the sum of its calls) to keep at the best score.

    Raises UsageError unless one goal is given, InputError where no thresholds reach it, naming what
    is within reach, or for input that ``Cascade.replay`` refuses.

    Parameters
    ----------
    score_NK : recorded scores, without NaN in the columns of ``order``
    cost_NK : recorded or expected costs of a call, (N, K) or (K,)
    acceptance_NK : what the verifier says of each answer; the last model's is not used
    order : columns in the order asked
    """
    if (min_quality is None) == (max_usd is None):
        raise UsageError("cascade: give either min_quality or max_usd")
    grid = _judge(score_NK, cost_NK, acceptance_NK, tuple(order))
    if min_quality is not None:
        fits = grid.quality >= min_quality - _ROUNDING
        if not fits.any():
            raise InputError(
                f"cascade: no thresholds reach quality {min_quality:g}, the best is "
                f"{grid.quality.max():g}; lower the target or add a better model"
            )
        first, second = np.where(fits, grid.cost, np.inf), -grid.quality
    else:
        fits = grid.cost <= max_usd * (1 + _ROUNDING)  # type: ignore[operator]
        if not fits.any():
            raise InputError(
                f"cascade: no thresholds cost at most {max_usd:g} USD a prompt, the least is "
                f"{grid.cost.min():g}; raise the budget or begin with a cheaper model"
            )
        first, second = np.where(fits, -grid.quality, np.inf), grid.cost
    return grid.at(int(np.lexsort((second, first))[0]))


def cascade_frontier(
    score_NK: Float,
    cost_NK: Float,
    acceptance: Acceptance,
    *,
    orders: Iterable[Sequence[int]],
) -> tuple[Calibrated, ...]:
    """Return the cascades on the cost-quality hull of all these orders, by rising cost.

    Mixing neighbours at random reaches everything between them. Parameters and errors as
    ``fit_cascade``; ``chains`` lists orders, ``acceptance`` may be a function of the order.
    """
    found: list[Calibrated] = []
    for order in orders:
        grid = _judge(score_NK, cost_NK, acceptance_of(acceptance, order), tuple(order))
        hull = upper_hull(grid.cost, grid.quality)
        found.extend(grid.at(int(i)) for i in hull.index)
    if not found:
        raise InputError("cascade: expected at least one order of models")
    hull = upper_hull([c.cost for c in found], [c.quality for c in found])
    return tuple(found[int(i)] for i in hull.index)


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """All combinations of candidate thresholds of one order, flattened."""

    order: tuple[int, ...]
    candidates: tuple[Float64, ...]
    quality: Float64
    cost: Float64

    def at(self, cell: int) -> Calibrated:
        index = np.unravel_index(cell, tuple(len(c) for c in self.candidates))
        thresholds = tuple(float(c[i]) for c, i in zip(self.candidates, index, strict=True))
        return Calibrated(
            cascade=Cascade(order=self.order, thresholds=thresholds),
            quality=float(self.quality[cell]),
            cost=float(self.cost[cell]),
        )


def _judge(score_NK: Float, cost_NK: Float, acceptance_NK: Float, order: tuple[int, ...]) -> _Grid:
    """Return mean score and mean cost of every combination of candidate thresholds."""
    Cascade(order=order, thresholds=(0.0,) * (len(order) - 1))  # refuses a wrong order
    acceptance, cost = checked(acceptance_NK, cost_NK, order)
    score = np.asarray(score_NK, dtype=np.float64)
    if score.shape != acceptance.shape or np.isnan(score[:, list(order)]).any():
        raise InputError(
            f"cascade: expected scores without NaN of shape {acceptance.shape}, got {score.shape}"
        )
    most = MOST_CELLS if len(order) <= 2 else int(MOST_CELLS ** (1 / (len(order) - 1)))
    candidates = tuple(_candidates(acceptance[:, k], most) for k in order[:-1])
    # reached[s]: how many of its candidates the answer of stage s reaches; it is taken at
    # candidate i when reached > i, since candidates rise.
    reached = [
        np.searchsorted(c, acceptance[:, k], side="right")
        for c, k in zip(candidates, order[:-1], strict=True)
    ]
    shape = tuple(len(c) for c in candidates)
    quality, spent = np.zeros(shape), np.zeros(shape)
    for stage, column in enumerate(order):
        spent += _sums(cost[:, column], reached[:stage], shape, taken=False)
        here = reached[: stage + 1] if stage < len(shape) else reached
        quality += _sums(score[:, column], here, shape, taken=stage < len(shape))
    n = len(score)
    return _Grid(
        order=order, candidates=candidates, quality=quality.ravel() / n, cost=spent.ravel() / n
    )


def _sums(value_N: Float64, reached: list[Ints], shape: tuple[int, ...], *, taken: bool) -> Float64:
    """Sum the values of prompts that get past these stages, for every combination of candidates.

    With ``taken`` they are stopped at the last of the stages instead. The result has the dimensions
    of these stages, and length 1 in the others.
    """
    sizes = tuple(size + 1 for size in shape[: len(reached)])
    if not reached:
        return np.full((1,) * len(shape), value_N.sum())
    flat = np.ravel_multi_index(tuple(reached), sizes)
    sums = np.bincount(flat, weights=value_N, minlength=int(np.prod(sizes)))
    table: Float64 = sums.astype(np.float64).reshape(sizes)
    for axis in range(len(reached)):
        # Past candidate i: reached <= i.
        past = np.cumsum(table, axis=axis)
        if taken and axis == len(reached) - 1:
            past = past.take([-1], axis=axis) - past
        table = past.take(range(shape[axis]), axis=axis)
    return table.reshape(table.shape + (1,) * (len(shape) - len(reached)))


def _candidates(value_N: Float64, most: int) -> Float64:
    """Return rising thresholds: from taking every answer to taking none (inf)."""
    distinct = np.unique(value_N)
    if len(distinct) > most - 1:
        distinct = np.unique(np.quantile(distinct, np.linspace(0, 1, most - 1), method="lower"))
    return np.append(distinct, np.inf)
