"""Capacitated assignment: N items to K targets, as much total value as the capacities allow.

One call, ``assign``, over five methods:

===========  =======  ==============================================================================
method       exact    what it does
===========  =======  ==============================================================================
``lp``       yes      transportation linear programme (HiGHS); its vertices are integral
``hungarian``  yes    linear sum assignment over targets replicated capacity times; k = 1 only
``greedy``   no       pairs in descending value while both sides have room; at least half the
                      optimum where no value is negative and not all must be placed
``topk``     no       each item asks its best k targets once; a full target keeps the best of those
                      who asked and drops the rest (token choice under capacity)
``sinkhorn``  no      entropic optimal transport in the log domain, rounded to whole items; k = 1
===========  =======  ==============================================================================

Sources: Cuturi 2013 and Benamou et al. 2015 for entropic transport with inequality constraints;
Gale and Shapley 1962 for the rounds in which ``greedy`` is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, UsageError, unknown_name

Float = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Method = Literal["lp", "hungarian", "greedy", "topk", "sinkhorn"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """Who goes where.

    Attributes
    ----------
    target : int64, shape (N, k); targets of each item by descending value, -1 = unplaced
    weight : float64, shape (N, k); 1 where placed and 0 elsewhere, except for ``sinkhorn``: mass of
        the pair in the transport plan before rounding, in [0, 1]
    value : sum of the values of all placed pairs
    optimal : whether no other assignment is worth more (proven, not measured)
    """

    target: Ints
    weight: Float
    value: float
    optimal: bool

    def load(self, num_targets: int) -> Ints:
        """Return how many items each target got, shape (K,)."""
        return np.bincount(self.target[self.target >= 0], minlength=num_targets)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Problem:
    value: Float  # (N, K), -inf = forbidden
    allowed: Bools  # (N, K)
    capacity: Ints  # (K,), at most N
    k: int
    require_all: bool
    epsilon: float
    num_iterations: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    placed: Bools  # (N, K)
    optimal: bool
    mass: Float | None = None  # (N, K), where it is not 1 for each placed pair


def assign(
    value: npt.ArrayLike,
    capacity: npt.ArrayLike,
    *,
    method: Method = "lp",
    k: int = 1,
    require_all: bool = False,
    epsilon: float = 0.05,
    num_iterations: int = 500,
) -> Assignment:
    """Assign each item to at most ``k`` different targets, maximising the total value.

    Parameters
    ----------
    value : (N, K); worth of each pair, of any sign; -inf forbids the pair
    capacity : (K,) or one number, whole and >= 0 or inf; items each target can take
    method : see the module's table
    k : targets per item, in [1, K]
    require_all : whether every item must get exactly ``k`` targets. If not, a pair of negative
        value is left out, and one of value 0 may be.
    epsilon, num_iterations : for ``sinkhorn``: temperature as a share of the largest ``|value|``,
        and sweeps at most. Smaller epsilon comes nearer to the optimum and needs more sweeps.

    Raises
    ------
    InputError : NaN or +inf values, shapes that disagree, negative or fractional capacities, or
        ``require_all`` where not all can be placed (by any assignment, or by this heuristic)
    UsageError : unknown method, k outside [1, K], k > 1 with a method for k = 1 only
    """
    if method not in _METHODS:
        raise unknown_name("assignment method", method, _METHODS)
    problem = _problem(
        value,
        capacity,
        k=k,
        require_all=require_all,
        epsilon=epsilon,
        num_iterations=num_iterations,
    )
    if require_all:
        _check_room(problem)
    if k > 1 and method in {"hungarian", "sinkhorn"}:
        raise UsageError(f"assignment method {method!r} places k = 1, got k = {k}; use 'lp'")
    if not problem.allowed.any() or not problem.capacity.any():
        nothing = _Plan(placed=np.zeros(problem.value.shape, dtype=bool), optimal=True)
        return _finish(problem, nothing, method)
    return _finish(problem, _METHODS[method](problem), method)


def _problem(
    value: npt.ArrayLike,
    capacity: npt.ArrayLike,
    *,
    k: int,
    require_all: bool,
    epsilon: float,
    num_iterations: int,
) -> _Problem:
    """Check every argument once."""
    value_NK = np.asarray(value, dtype=np.float64)
    if value_NK.ndim != 2:
        raise InputError(f"assignment: expected values of shape (N, K), got {value_NK.shape}")
    num_items, num_targets = value_NK.shape
    if np.isnan(value_NK).any() or np.isposinf(value_NK).any():
        raise InputError("assignment: values hold NaN or +inf; use -inf to forbid a pair")
    if not 1 <= k <= num_targets:
        raise UsageError(f"assignment: expected k in [1, {num_targets}] targets, got {k}")
    if not (epsilon > 0 and num_iterations > 0):
        raise UsageError(
            "assignment: expected epsilon and num_iterations > 0, "
            f"got {epsilon!r} and {num_iterations!r}"
        )
    given = np.asarray(capacity, dtype=np.float64)
    if given.ndim > 1 or (given.ndim == 1 and len(given) != num_targets):
        raise InputError(
            f"assignment: expected one capacity or {num_targets}, got shape {given.shape}"
        )
    if not ((given >= 0) & (given == np.floor(given))).all():
        raise InputError(f"assignment: capacities must be whole numbers >= 0, got {capacity!r}")
    capacity_K = np.minimum(np.broadcast_to(given, num_targets), num_items).astype(np.int64)
    return _Problem(
        value=value_NK,
        allowed=np.isfinite(value_NK) if require_all else value_NK >= 0,
        capacity=capacity_K,
        k=k,
        require_all=require_all,
        epsilon=epsilon,
        num_iterations=num_iterations,
    )


def _check_room(problem: _Problem) -> None:
    """Refuse what counting alone shows to be impossible."""
    wanted, room = problem.k * len(problem.value), int(problem.capacity.sum())
    if room < wanted:
        raise InputError(
            f"assignment: {wanted} placements are required but all capacities sum to {room}; "
            "raise the capacities or pass require_all=False"
        )
    choices_N = (problem.allowed & (problem.capacity > 0)).sum(axis=1)
    if (choices_N < problem.k).any():
        raise InputError(
            f"assignment: item {int(choices_N.argmin())} has {choices_N.min()} allowed targets but "
            f"needs {problem.k}; allow more pairs or pass require_all=False"
        )


def _infeasible() -> InputError:
    return InputError(
        "assignment: no assignment places every item within the capacities and allowed pairs; "
        "raise capacities, allow more pairs, or pass require_all=False"
    )


def _scaled(value: Float) -> Float:
    """Divide by the largest finite magnitude, so that tolerances do not depend on the unit."""
    largest = np.abs(value, where=np.isfinite(value), out=np.zeros_like(value)).max(initial=0.0)
    return value / largest if largest > 0 else value


def _linear_programme(problem: _Problem) -> _Plan:
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    num_items, num_targets = problem.value.shape
    item, target = np.nonzero(problem.allowed)
    pair, ones = np.arange(len(item)), np.ones(len(item))
    # Row sums (items) and column sums (targets) of a bipartite graph: totally unimodular.
    per_item = csr_array((ones, (item, pair)), shape=(num_items, len(pair)))
    per_target = csr_array((ones, (target, pair)), shape=(num_targets, len(pair)))
    demand = np.full(num_items, float(problem.k))
    worth = _scaled(problem.value[problem.allowed])
    rows: dict[str, Any]
    if problem.require_all:
        rows = {"A_eq": per_item, "b_eq": demand, "A_ub": per_target, "b_ub": problem.capacity}
    else:
        from scipy.sparse import vstack

        bounds = np.concatenate([demand, problem.capacity])
        rows = {"A_ub": vstack([per_item, per_target]), "b_ub": bounds}
    # The dual simplex ends in a vertex; an interior point of the optimal face would not be whole.
    found = linprog(-worth, bounds=(0.0, 1.0), method="highs-ds", **rows)
    if found.status == 2:  # scipy's code for an infeasible programme
        raise _infeasible()
    assert found.status == 0, found.message
    placed = np.zeros(problem.value.shape, dtype=bool)
    placed[item, target] = found.x > 0.5
    return _Plan(placed=placed, optimal=True)


def _hungarian(problem: _Problem) -> _Plan:
    from scipy.optimize import linear_sum_assignment

    copies = np.repeat(np.arange(len(problem.capacity)), problem.capacity)
    # Where an item may stay out, a pair of value 0 stands for that, and every partial assignment
    # extends to a full one of the same value.
    value = problem.value if problem.require_all else np.maximum(problem.value, 0.0)
    try:
        item, column = linear_sum_assignment(value[:, copies], maximize=True)
    except ValueError:
        raise _infeasible() from None
    placed = np.zeros(problem.value.shape, dtype=bool)
    placed[item, copies[column]] = True
    return _Plan(placed=placed & problem.allowed, optimal=True)


def _greedy(problem: _Problem) -> _Plan:
    return _ask(problem, problem.value, patient=True)


def _top_k(problem: _Problem) -> _Plan:
    return _ask(problem, problem.value, patient=False)


def _ask(problem: _Problem, preference: Float, *, patient: bool) -> _Plan:
    """Items ask their best targets, full targets refuse; patient items then ask the next ones.

    Both sides rank pairs by the same strict order (preference, then item, then target), so the
    stable outcome is unique and is the one of taking pairs greedily in that order.
    """
    num_items, num_targets = problem.value.shape
    order = np.argsort(-np.where(problem.allowed, preference, -np.inf), axis=None, kind="stable")
    rank_NK = np.empty((num_items, num_targets), dtype=np.int64)
    rank_NK.reshape(-1)[order] = np.arange(order.size)
    open_NK = problem.allowed.copy()
    nobody_refused = True
    while True:
        asked = np.argsort(np.where(open_NK, rank_NK, order.size), axis=1)[:, : problem.k]
        item = np.repeat(np.arange(num_items), problem.k)
        target = asked.ravel()
        valid = open_NK[item, target]
        item, target = item[valid], target[valid]
        refused = _overflow(target, rank_NK[item, target], problem.capacity)
        nobody_refused = nobody_refused and not refused.any()
        if not refused.any() or not patient:
            break
        open_NK[item[refused], target[refused]] = False
    placed = np.zeros(problem.value.shape, dtype=bool)
    placed[item[~refused], target[~refused]] = True
    # Where no target was ever full, each item has its best targets.
    return _Plan(placed=placed, optimal=nobody_refused)


def _overflow(target: Ints, rank: Ints, capacity: Ints) -> Bools:
    """Mark the askers beyond each target's best ``capacity``."""
    order = np.lexsort((rank, target))
    queue = target[order]
    position = np.arange(len(queue)) - np.searchsorted(queue, queue)
    refused = np.empty(len(queue), dtype=bool)
    refused[order] = position >= capacity[queue]
    return refused


def _sinkhorn(problem: _Problem) -> _Plan:
    """Transport, then take pairs greedily by transported mass.

    Ascends the dual of ``max <V, P> + epsilon H(P)`` with row sums = 1 (<= 1 unless all must be
    placed) and column sums <= capacity; an inequality's potential stays <= 0.
    """
    from scipy.special import logsumexp

    log_kernel = _scaled(np.where(problem.allowed, problem.value, -np.inf)) / problem.epsilon
    with np.errstate(divide="ignore"):
        log_capacity = np.log(problem.capacity.astype(np.float64))
    row, column = np.zeros(len(log_kernel)), np.where(problem.capacity > 0, 0.0, -np.inf)
    served = problem.capacity > 0
    for _ in range(problem.num_iterations):
        before = column.copy()
        row = -logsumexp(log_kernel + column, axis=1)
        # A row without any allowed pair has no mass to bound.
        row = np.where(np.isfinite(row), row, 0.0)
        row = row if problem.require_all else np.minimum(row, 0.0)
        mass = logsumexp(log_kernel[:, served] + row[:, None], axis=0)
        column[served] = np.minimum(log_capacity[served] - mass, 0.0)
        if np.abs(column[served] - before[served]).max() < 1e-9:
            break
    log_plan = log_kernel + row[:, None] + column
    rounded = _ask(problem, log_plan, patient=True)
    return _Plan(placed=rounded.placed, optimal=False, mass=np.exp(np.minimum(log_plan, 0.0)))


_METHODS: dict[str, Callable[[_Problem], _Plan]] = {
    "lp": _linear_programme,
    "hungarian": _hungarian,
    "greedy": _greedy,
    "topk": _top_k,
    "sinkhorn": _sinkhorn,
}


def _finish(problem: _Problem, plan: _Plan, method: str) -> Assignment:
    """List each item's targets by descending value and check that all are placed if required."""
    num_placed = plan.placed.sum(axis=1)
    missing = int((num_placed < problem.k).sum())
    if problem.require_all and missing:
        raise InputError(
            f"assignment: method {method!r} left {missing} of {len(num_placed)} items without "
            f"{problem.k} target(s); use method='lp', or pass require_all=False"
        )
    order = np.argsort(np.where(plan.placed, -problem.value, np.inf), axis=1, kind="stable")
    target = order[:, : problem.k]
    there = np.take_along_axis(plan.placed, target, axis=1)
    weight = plan.placed if plan.mass is None else plan.mass
    return Assignment(
        target=np.where(there, target, -1),
        weight=np.where(there, np.take_along_axis(weight, target, axis=1), 0.0),
        value=float(problem.value[plan.placed].sum()),
        optimal=plan.optimal,
    )
