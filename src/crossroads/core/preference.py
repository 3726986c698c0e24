"""Preferences over several objectives, and what a set of trade-offs is worth.

Points are rows: N points x M objectives. Two views are offered:

- any number of objectives: weights on the simplex, utilities, the Pareto front, its hypervolume and
  its R2 indicator;
- two objectives, cost and quality: the hull of what can be reached by choosing at random between
  operating points, and the average quality over a range of budgets (AIQ).

Sources: Das and Dennis 1998 (grid on the simplex); Steuer and Choo 1983 (augmented Chebyshev);
Hansen and Jaszkiewicz 1998 (R2); RouterBench, Hu et al. 2024, arXiv 2403.12031 (hull, AIQ).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError

Float = npt.NDArray[np.float64]
Maximise = bool | Sequence[bool]


def simplex_grid(num_objectives: int, divisions: int) -> Float:
    """Return every weight vector whose entries are multiples of ``1 / divisions``.

    Shape (C(divisions + M - 1, M - 1), M); rows are >= 0 and sum to 1, in lexicographic order.
    Raises InputError unless both numbers are >= 1.
    """
    if num_objectives < 1 or divisions < 1:
        raise InputError(
            "simplex grid: expected at least 1 objective and 1 division, "
            f"got {num_objectives} and {divisions}"
        )
    # A row is a way to place M - 1 bars among the divisions; the gaps between bars are its entries.
    places = divisions + num_objectives - 1
    bars = [(-1, *chosen, places) for chosen in combinations(range(places), num_objectives - 1)]
    return (np.diff(np.array(bars, dtype=np.float64), axis=1) - 1.0) / divisions


def simplex_samples(
    num_objectives: int,
    num_samples: int,
    *,
    rng: np.random.Generator,
    concentration: float | Sequence[float] = 1.0,
) -> Float:
    """Draw weight vectors from a Dirichlet distribution; shape (num_samples, num_objectives).

    ``concentration`` 1 is uniform on the simplex, below 1 favours corners, above 1 the centre.
    """
    alpha = np.broadcast_to(np.asarray(concentration, dtype=np.float64), (num_objectives,))
    if not (np.isfinite(alpha).all() and (alpha > 0).all()):
        raise InputError(f"simplex samples: expected concentration > 0, got {concentration!r}")
    return rng.dirichlet(alpha, size=num_samples)


def linear_utility(values: npt.ArrayLike, weights: npt.ArrayLike) -> Float:
    """Return ``sum_i w_i v_i`` of each point; higher is better.

    ``values`` (N, M) to be maximised; ``weights`` (M,) gives (N,), and (P, M) gives (P, N).
    """
    value_NM, weight_PM = _points(values), _weights(weights, values)
    return _like(weights, weight_PM @ value_NM.T)


def chebyshev_utility(
    values: npt.ArrayLike, weights: npt.ArrayLike, *, ideal: npt.ArrayLike = 1.0
) -> Float:
    """Return ``-max_i w_i |ideal_i - v_i|``; 0 at the ideal point, shapes of `linear_utility`.

    Unlike the linear utility, every Pareto-optimal point is best for some weights, also where the
    front is not convex.
    """
    value_NM, weight_PM = _points(values), _weights(weights, values)
    return _like(weights, -_chebyshev_distance(value_NM, weight_PM, ideal))


def augmented_chebyshev_utility(
    values: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    ideal: npt.ArrayLike = 1.0,
    rho: float = 0.05,
) -> Float:
    """Return ``-(max_i w_i |ideal_i - v_i| + rho sum_i |ideal_i - v_i|)`` (Steuer and Choo 1983).

    The second term tells a weakly dominated point from the one that dominates it.
    """
    value_NM, weight_PM = _points(values), _weights(weights, values)
    total_N = np.abs(np.asarray(ideal) - value_NM).sum(axis=1)
    distance_PN = _chebyshev_distance(value_NM, weight_PM, ideal) + rho * total_N
    return _like(weights, -distance_PN)


def pareto_front(values: npt.ArrayLike, *, maximise: Maximise = True) -> npt.NDArray[np.bool_]:
    """Return a mask, shape (N,): True where no other point is at least as good and once better.

    Equal points are kept together. ``maximise`` is one flag or one per objective.
    """
    import moocore

    value_NM = _points(values)
    if value_NM.size == 0:
        return np.ones(len(value_NM), dtype=bool)
    flags = _flags(maximise, value_NM.shape[1])
    mask = moocore.is_nondominated(value_NM, maximise=flags, keep_weakly=True)
    return np.asarray(mask, dtype=bool)


def hypervolume(
    values: npt.ArrayLike, reference: npt.ArrayLike, *, maximise: Maximise = True
) -> float:
    """Return the volume dominated by the points and bounded by ``reference``.

    ``reference`` is (M,) or one number, in the units of the values; points that are not strictly
    better than it in every objective add nothing. No points: 0.
    """
    import moocore

    value_NM = _points(values)
    reference_M = np.broadcast_to(np.asarray(reference, dtype=np.float64), value_NM.shape[1:])
    if not np.isfinite(reference_M).all():
        raise InputError(f"hypervolume: expected a finite reference point, got {reference!r}")
    if value_NM.size == 0:
        return 0.0
    flags = _flags(maximise, value_NM.shape[1])
    return float(moocore.hypervolume(value_NM, ref=reference_M.copy(), maximise=flags))


def r2_indicator(
    values: npt.ArrayLike, weights: npt.ArrayLike, *, ideal: npt.ArrayLike = 1.0
) -> float:
    """Return the mean over weights of ``min over points of max_i w_i |ideal_i - v_i|``.

    Lower is better, 0 when the ideal point is among the points.
    ``values`` (N, M) to be maximised, N >= 1; ``weights`` (P, M), for instance `simplex_grid`.
    """
    value_NM, weight_PM = _points(values), _weights(weights, values)
    if len(value_NM) == 0 or len(weight_PM) == 0:
        raise InputError("R2 indicator: expected at least one point and one weight vector")
    return float(_chebyshev_distance(value_NM, weight_PM, ideal).min(axis=1).mean())


@dataclass(frozen=True, kw_only=True, slots=True)
class Hull:
    """A non-decreasing concave curve from cost to quality, given by its H vertices.

    Attributes
    ----------
    cost : shape (H,), strictly increasing
    quality : shape (H,), strictly increasing
    index : shape (H,), which of the input points each vertex is
    """

    cost: Float
    quality: Float
    index: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.cost)


def upper_hull(cost: npt.ArrayLike, quality: npt.ArrayLike) -> Hull:
    """Return the best quality in expectation at each cost, mixing operating points at random.

    ``cost`` and ``quality`` are (N,), N >= 1, finite. The hull starts at the cheapest point (the
    best of the cheapest) and ends at the best one (the cheapest of the best); whoever may spend
    more may also spend less, so it never falls. Raises InputError on empty or non-finite input.
    """
    cost_N = np.asarray(cost, dtype=np.float64).ravel()
    quality_N = np.asarray(quality, dtype=np.float64).ravel()
    if len(cost_N) != len(quality_N) or len(cost_N) == 0:
        raise InputError(
            "upper hull: expected as many costs as qualities and at least one, "
            f"got {len(cost_N)} and {len(quality_N)}"
        )
    if not (np.isfinite(cost_N).all() and np.isfinite(quality_N).all()):
        raise InputError("upper hull: costs and qualities must be finite; drop unpriced points")
    vertices: list[int] = []
    for i in np.lexsort((-quality_N, cost_N)):
        if vertices and quality_N[i] <= quality_N[vertices[-1]]:
            continue
        while len(vertices) > 1 and _is_below(cost_N, quality_N, vertices, i):
            vertices.pop()
        vertices.append(int(i))
    chosen = np.array(vertices, dtype=np.int64)
    return Hull(cost=cost_N[chosen], quality=quality_N[chosen], index=chosen)


def hull_quality_at(hull: Hull, cost: npt.ArrayLike) -> Float:
    """Return the hull's quality at each cost (any shape).

    Linear between vertices, flat right of the last one, NaN left of the first: that little cannot
    be spent.
    """
    cost = np.asarray(cost, dtype=np.float64)
    return np.asarray(np.interp(cost, hull.cost, hull.quality, left=np.nan))


def cost_at_quality(hull: Hull, quality: npt.ArrayLike) -> Float:
    """Return the smallest cost at which the hull reaches each quality (any shape); inf if never."""
    quality = np.asarray(quality, dtype=np.float64)
    return np.asarray(np.interp(quality, hull.quality, hull.cost, left=hull.cost[0], right=np.inf))


def aiq(cost: npt.ArrayLike, quality: npt.ArrayLike, low: float, high: float) -> float:
    """Return the average quality over budgets from ``low`` to ``high`` (RouterBench's AIQ).

    The area under the `upper_hull` of the points between the two costs, over ``high - low``. The
    hull is flat right of its last vertex. Budgets below its first vertex buy no answer and count as
    quality 0, which is what RouterBench's released code does; to compare routers, take ``low`` and
    ``high`` as the costs of the cheapest and of the dearest single model for all of them alike.
    With ``low == high`` it is the quality at that cost. Raises InputError if ``low > high``.

    Qualities are expected to be >= 0; then adding a point never lowers the figure.
    """
    if not (np.isfinite([low, high]).all() and low <= high):
        raise InputError(f"AIQ: expected finite costs with low <= high, got {low!r} and {high!r}")
    hull = upper_hull(cost, quality)
    first = hull.cost[0]
    rounding = 1e-9 * abs(high)  # sums of the same costs in another order differ by this little
    if high - low <= rounding:
        return float(hull_quality_at(hull, max(high, first))) if first <= high + rounding else 0.0
    start = max(low, first)
    if start >= high:
        return 0.0
    inside = hull.cost[(hull.cost > start) & (hull.cost < high)]
    knots = np.concatenate([[start], inside, [high]])
    # Divide before summing: areas of tiny ranges would lose digits.
    return float(np.trapezoid(hull_quality_at(hull, knots), (knots - low) / (high - low)))


def _is_below(cost: Float, quality: Float, vertices: list[int], last: int) -> bool:
    """Whether the last vertex lies on or below the segment from the one before it to ``last``."""
    first, middle = vertices[-2:]
    run, rise = cost[last] - cost[first], quality[last] - quality[first]
    up, along = quality[middle] - quality[first], cost[middle] - cost[first]
    return bool(up * run <= rise * along)


def _chebyshev_distance(value_NM: Float, weight_PM: Float, ideal: npt.ArrayLike) -> Float:
    """``max_i w_i |ideal_i - v_i|``, shape (P, N), one objective at a time to spare memory."""
    gap_NM = np.abs(np.asarray(ideal, dtype=np.float64) - value_NM)
    distance_PN = np.zeros((len(weight_PM), len(value_NM)))
    for gap_N, weight_P in zip(gap_NM.T, weight_PM.T, strict=True):
        np.maximum(distance_PN, weight_P[:, None] * gap_N, out=distance_PN)
    return distance_PN


def _points(values: npt.ArrayLike) -> Float:
    value_NM = np.asarray(values, dtype=np.float64)
    if value_NM.ndim != 2 or value_NM.shape[1] == 0:
        raise InputError(f"expected points of shape (N, M) with M >= 1, got {value_NM.shape}")
    if not np.isfinite(value_NM).all():
        raise InputError("points hold NaN or infinity; drop those rows")
    return value_NM


def _weights(weights: npt.ArrayLike, values: npt.ArrayLike) -> Float:
    weight_PM = np.atleast_2d(np.asarray(weights, dtype=np.float64))
    num_objectives = np.shape(values)[1]
    if weight_PM.ndim != 2 or weight_PM.shape[1] != num_objectives:
        raise InputError(
            f"expected weights of shape ({num_objectives},) or (P, {num_objectives}), "
            f"got {np.shape(weights)}"
        )
    if not (np.isfinite(weight_PM).all() and (weight_PM >= 0).all()):
        raise InputError("preference weights must be finite and >= 0")
    return weight_PM


def _like(weights: npt.ArrayLike, utility_PN: Float) -> Float:
    """Drop the preference axis where one weight vector was given."""
    return np.asarray(utility_PN[0] if np.ndim(weights) == 1 else utility_PN)


def _flags(maximise: Maximise, num_objectives: int) -> list[bool]:
    flags: Any = [maximise] * num_objectives if isinstance(maximise, bool) else list(maximise)
    if len(flags) != num_objectives:
        raise InputError(
            f"maximise: expected one flag or {num_objectives}, got {len(flags)} of them"
        )
    return [bool(flag) for flag in flags]
