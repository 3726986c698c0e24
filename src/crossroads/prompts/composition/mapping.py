"""Which expert serves which category when all experts kept must fit a budget of parameters.

Composition of Experts (2024, arXiv 2412.01868) writes the choice as a mixed integer programme over
C categories and K experts: y_ce = 1 where category c goes to expert e, z_e = 1 where e is kept,

    maximise sum_c n_c sum_e W_ce y_ce
    subject to sum_e y_ce = 1,  y_ce <= z_e,  sum_e size_e z_e <= B

with W the mean score of each expert in each category and n_c the weight of the category. Only z has
to be integral: given the experts kept, each category simply takes its best. ``solve_mapping`` is
exact (HiGHS); ``enumerate_mapping`` tries every set of up to 20 experts and is its check.

Of equally good sets the smallest is kept; within it a category prefers the smaller expert, then the
earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, UsageError

Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

MOST_ENUMERATED = 20  # experts: a million sets
_ROUNDING = 1e-9  # relative: sizes are sums of decimal fractions, 0.1 + 0.2 fits 0.3
_LEVEL = 1e-9  # scores (means in [0, 1] by convention) closer than this are equal
_LARGEST_GAIN = 1e4  # of the programme: HiGHS stops at an absolute gap of 1e-6


class BudgetError(InputError):
    """No expert fits the budget; ``smallest`` is the smallest budget that one fits."""

    def __init__(self, budget: float, smallest: float) -> None:
        super().__init__(
            f"a budget of {spell_size(budget)} parameters holds no expert; "
            f"the smallest feasible budget is {spell_size(smallest)}"
        )
        self.smallest = smallest


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapping:
    """Each category's expert.

    Attributes
    ----------
    expert : (C,) column of the expert of each category
    kept : (S,) the experts used, ascending
    score : mean of W over the categories, weighted by n
    total : sum of the sizes of the experts kept
    """

    expert: Ints
    kept: Ints
    score: float
    total: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetCurve:
    """The best composition and the best single expert at P budgets; all shape (P,)."""

    budget: Float64
    score: Float64
    total: Float64
    best_single: Float64


@dataclass(frozen=True, kw_only=True, slots=True)
class _Problem:
    worth: Float64  # (C, K)
    share: Float64  # (C,), sums to 1
    size: Float64  # (K,)
    budget: float


def solve_mapping(
    worth_CK: npt.ArrayLike, weight_C: npt.ArrayLike, size_K: npt.ArrayLike, budget: float = np.inf
) -> Mapping:
    """Return the best mapping under a budget, proven.

    Raises InputError for arrays that are not as above, UsageError for a budget that is no positive
    number, BudgetError where no expert fits.

    Parameters
    ----------
    worth_CK : mean score of each expert in each category, finite
    weight_C : weight of each category, >= 0 and not all 0
    size_K : size of each expert, > 0, in the unit of ``budget`` (parameters)
    budget : largest sum of the sizes of the experts kept; inf for none
    """
    problem = _checked(worth_CK, weight_C, size_K, budget)
    fitting = np.flatnonzero(problem.size <= _room(problem))
    everyone = _assign(problem, fitting)
    if everyone.total <= _room(problem):
        # With room for every category's favourite; where favourites tie, fewer experts may do.
        worth = problem.worth[:, fitting]
        rivals = worth >= worth.max(axis=1, keepdims=True) - _LEVEL
        if (rivals.sum(axis=1) == 1).all():
            return everyone
    best = _programme(problem)
    return _programme(problem, at_least=best)


def enumerate_mapping(
    worth_CK: npt.ArrayLike, weight_C: npt.ArrayLike, size_K: npt.ArrayLike, budget: float = np.inf
) -> Mapping:
    """Return the best mapping by trying every set of experts; arguments as ``solve_mapping``.

    Takes time and memory of 2^K; raises UsageError beyond 20 experts.
    """
    problem = _checked(worth_CK, weight_C, size_K, budget)
    num_experts = len(problem.size)
    if num_experts > MOST_ENUMERATED:
        raise UsageError(
            f"mapping: expected at most {MOST_ENUMERATED} experts to enumerate, got {num_experts}; "
            "use solve_mapping"
        )
    total_S = np.zeros(1)
    for size in problem.size:  # bit e of a set's number says whether it holds expert e
        total_S = np.concatenate([total_S, total_S + size])
    score_S = np.zeros(len(total_S))
    for share, worth_K in zip(problem.share, problem.worth, strict=True):
        best_S = np.full(1, -np.inf)
        for worth in worth_K:
            best_S = np.concatenate([best_S, np.maximum(best_S, worth)])
        score_S[1:] += share * best_S[1:]
    allowed = total_S <= _room(problem)
    allowed[0] = False
    best = score_S[allowed].max()
    tied = np.flatnonzero(allowed & (score_S >= best - _LEVEL))
    smallest = tied[total_S[tied] <= total_S[tied].min() * (1 + _ROUNDING)]
    members = [np.flatnonzero(number >> np.arange(num_experts) & 1) for number in smallest]
    return _assign(problem, min(members, key=lambda kept: kept.tolist()))


def budget_curve(
    worth_CK: npt.ArrayLike,
    weight_C: npt.ArrayLike,
    size_K: npt.ArrayLike,
    budgets: Sequence[float] | None = None,
) -> BudgetCurve:
    """Return the best mapping's score at each budget, beside the best single expert that fits.

    Without ``budgets``: at each expert's size, and at what the favourites of all categories take.
    Raises what ``solve_mapping`` raises.
    """
    unlimited = solve_mapping(worth_CK, weight_C, size_K)
    problem = _checked(worth_CK, weight_C, size_K, np.inf)
    if budgets is None:
        budgets = np.unique([*problem.size, unlimited.total]).tolist()
    single_K = problem.share @ problem.worth
    found = [solve_mapping(worth_CK, weight_C, size_K, budget) for budget in budgets]
    fits = [problem.size <= budget * (1 + _ROUNDING) for budget in budgets]
    return BudgetCurve(
        budget=np.array(budgets, dtype=np.float64),
        score=np.array([mapping.score for mapping in found]),
        total=np.array([mapping.total for mapping in found]),
        best_single=np.array([single_K[fit].max() for fit in fits]),
    )


def spell_size(parameters: float) -> str:
    """Write a number of parameters as a person would.

    >>> spell_size(3.8e9), spell_size(135e6)
    ('3.8B', '135M')
    """
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= scale:
            return f"{parameters / scale:.6g}{letter}"
    return f"{parameters:.6g}"


def _checked(
    worth_CK: npt.ArrayLike, weight_C: npt.ArrayLike, size_K: npt.ArrayLike, budget: float
) -> _Problem:
    worth, weight, size = (np.asarray(a, dtype=np.float64) for a in (worth_CK, weight_C, size_K))
    if worth.ndim != 2 or worth.size == 0 or worth.shape != (*weight.shape, *size.shape):
        raise InputError(
            "mapping: expected scores (C, K), weights (C,) and sizes (K,), got shapes "
            f"{worth.shape}, {weight.shape} and {size.shape}"
        )
    if not np.isfinite(worth).all():
        raise InputError("mapping: scores hold NaN or infinity; fill categories without outcomes")
    if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.sum() > 0):
        raise InputError("mapping: expected weights >= 0 of which one is above 0")
    if not (np.isfinite(size).all() and (size > 0).all()):
        raise InputError("mapping: expected sizes above 0; give every expert its size")
    if not budget > 0:
        raise UsageError(f"mapping: expected a budget above 0, got {budget!r}")
    problem = _Problem(worth=worth, share=weight / weight.sum(), size=size, budget=float(budget))
    if size.min() > _room(problem):
        raise BudgetError(budget, float(size.min()))
    return problem


def _room(problem: _Problem) -> float:
    return problem.budget * (1 + _ROUNDING)


def _assign(problem: _Problem, kept: Ints) -> Mapping:
    """Give each category its best expert among those kept; keep only those used."""
    by_size = kept[np.argsort(problem.size[kept], kind="stable")]
    worth = problem.worth[:, by_size]
    expert_C = by_size[(worth >= worth.max(axis=1, keepdims=True)).argmax(axis=1)]
    used = np.unique(expert_C)
    score = problem.share @ problem.worth[np.arange(len(expert_C)), expert_C]
    return Mapping(expert=expert_C, kept=used, score=float(score), total=fsum(problem.size[used]))


def _programme(problem: _Problem, at_least: Mapping | None = None) -> Mapping:
    """Return the best mapping or, given that, the smallest one as good."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    worth = problem.share[:, None] * problem.worth
    # Only what differs within a category matters; scaled, the solver's absolute gap is harmless.
    worth = worth - worth.min(axis=1, keepdims=True)
    spread = float(worth.max())
    gain_CK = worth * (_LARGEST_GAIN / spread if spread > _LEVEL else 0.0)
    constraints = _constraints(problem)
    num_categories, num_experts = gain_CK.shape
    no_z, no_y = np.zeros(num_experts), np.zeros(gain_CK.size)
    objective = np.concatenate([-gain_CK.ravel(), no_z])
    if at_least is not None:
        floor = gain_CK[np.arange(num_categories), at_least.expert].sum()
        constraints.append(LinearConstraint(objective[None], ub=-floor + 1e-6))
        objective = np.concatenate([no_y, problem.size / problem.size.max()])
    fits_K = (problem.size <= _room(problem)).astype(np.float64)
    bounds = Bounds(lb=0.0, ub=np.concatenate([no_y + 1.0, fits_K]))
    whole = np.concatenate([no_y, no_z + 1.0])
    while True:
        found = milp(
            objective,
            integrality=whole,
            bounds=bounds,
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if at_least is not None and found.x is None:
            return at_least
        assert found.x is not None, found.message  # the smallest expert alone is a solution
        kept = np.flatnonzero(found.x[gain_CK.size :] > 0.5)
        if fsum(problem.size[kept]) <= _room(problem):
            break
        # The solver lets a sum exceed its bound by a millionth: forbid this very set.
        cover = np.zeros(gain_CK.size + num_experts)
        cover[gain_CK.size + kept] = 1.0
        constraints.append(LinearConstraint(cover[None], ub=len(kept) - 1.0))
    mapping = _assign(problem, kept)
    is_worse = at_least is not None and mapping.score < at_least.score - _LEVEL
    return at_least if at_least is not None and is_worse else mapping


def _constraints(problem: _Problem) -> list[Any]:
    """One expert a category; only experts kept; those within the budget. Columns: y by rows, z."""
    from scipy.optimize import LinearConstraint
    from scipy.sparse import csr_array, eye_array, hstack, kron

    num_categories, num_experts = problem.worth.shape
    size = num_categories * num_experts
    one_each = kron(eye_array(num_categories), np.ones((1, num_experts)))
    no_z = csr_array((num_categories, num_experts))
    only_kept = kron(np.ones((num_categories, 1)), -eye_array(num_experts))
    constraints = [
        LinearConstraint(hstack([one_each, no_z]).tocsr(), lb=1.0, ub=1.0),
        LinearConstraint(hstack([eye_array(size), only_kept]).tocsr(), ub=0.0),
    ]
    if np.isfinite(problem.budget):
        load = np.concatenate([np.zeros(size), problem.size / problem.budget])
        constraints.append(LinearConstraint(load[None], ub=1 + _ROUNDING))
    return constraints
