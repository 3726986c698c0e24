"""How far confidences can be trusted: calibration errors, and selective prediction.

``probability`` is what was claimed, in [0, 1], and ``outcome`` what came true, 0 or 1 (any value in
[0, 1] is allowed: a partial score). For selective prediction ``confidence`` may be any number,
higher is surer, and ``loss`` is what accepting the row costs, 0 for a right answer.

Guo, Pleiss, Sun and Weinberger, On calibration of modern neural networks (2017): the expected
calibration error. Nguyen and O'Connor, Posterior calibration (2015): bins of equal mass. Brier,
Verification of forecasts (1950). Geifman and El-Yaniv, Selective classification (2017): risk and
coverage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, unknown_name

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Numbers = npt.ArrayLike
Scheme = Literal["equal-width", "equal-mass"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityCurve:
    """Claimed against observed, over the B bins that hold a row.

    Attributes
    ----------
    probability : float64 (B,), mean claim of the bin
    frequency : float64 (B,), mean outcome of the bin
    count : int64 (B,), rows in the bin
    """

    probability: Float64
    frequency: Float64
    count: Ints


def reliability_curve(
    probability: Numbers, outcome: Numbers, bins: int = 15, scheme: Scheme = "equal-width"
) -> ReliabilityCurve:
    """Return the mean claim and the mean outcome of the rows in each bin of the claims.

    Raises InputError for no rows, shapes that differ, values outside [0, 1] or ``bins`` below 1,
    and UsageError for an unknown scheme.

    Parameters
    ----------
    probability, outcome : shape (N,), in [0, 1]
    bins : at most this many; empty ones are left out
    scheme : ``equal-width`` cuts [0, 1] evenly, ``equal-mass`` cuts the rows evenly where equal
        claims allow it: they always share a bin
    """
    claim_N, outcome_N = _rows(probability, outcome, "probability", "outcome")
    for name, values in (("probability", claim_N), ("outcome", outcome_N)):
        if values.min() < 0 or values.max() > 1:
            raise InputError(f"{name}: expected values in [0, 1], got {_extreme(values)}")
    if bins < 1:
        raise InputError(f"bins: expected at least 1, got {bins}")
    bin_N = _assign(claim_N, bins, scheme)
    count = np.bincount(bin_N)
    kept = count > 0
    return ReliabilityCurve(
        probability=np.bincount(bin_N, claim_N)[kept] / count[kept],
        frequency=np.bincount(bin_N, outcome_N)[kept] / count[kept],
        count=count[kept].astype(np.int64),
    )


def expected_calibration_error(
    probability: Numbers, outcome: Numbers, bins: int = 15, scheme: Scheme = "equal-width"
) -> float:
    """Return the mean of ``|claimed - observed|`` over rows, taken bin by bin; in [0, 1].

    Arguments and errors are those of `reliability_curve`. The figure depends on the bins: compare
    only figures of the same bins and scheme.
    """
    curve = reliability_curve(probability, outcome, bins, scheme)
    gap = np.abs(curve.probability - curve.frequency)
    return float((curve.count * gap).sum() / curve.count.sum())


def brier(probability: Numbers, outcome: Numbers) -> float:
    """Return the mean squared error of the claims, in [0, 1]; arguments as `reliability_curve`."""
    claim_N, outcome_N = _rows(probability, outcome, "probability", "outcome")
    return float(np.square(claim_N - outcome_N).mean())


def risk_coverage(confidence: Numbers, loss: Numbers) -> tuple[Float64, Float64]:
    """Return ``(coverage, risk)``, both (T,), accepting the surest rows first.

    Rows of equal confidence are accepted together, so T is the number of distinct confidences.
    ``coverage`` ascends in (0, 1] and is the share accepted; ``risk`` is the mean loss of those.
    Raises InputError for no rows, shapes that differ, or NaN.
    """
    confidence_N, loss_N = _rows(confidence, loss, "confidence", "loss")
    order = np.argsort(-confidence_N, kind="stable")
    accepted_T = _ends_of_ties(confidence_N[order])
    total = np.cumsum(loss_N[order])[accepted_T - 1]
    return accepted_T / len(order), total / accepted_T


def area_under_risk_coverage(confidence: Numbers, loss: Numbers) -> float:
    """Return the mean risk over the N coverages 1/N ... 1; lower is better.

    Rows of equal confidence count with the mean of their losses, which is what taking them in a
    random order gives on average. Errors are those of `risk_coverage`.
    """
    confidence_N, loss_N = _rows(confidence, loss, "confidence", "loss")
    order = np.argsort(-confidence_N, kind="stable")
    ends = _ends_of_ties(confidence_N[order])
    sizes = np.diff(ends, prepend=0)
    means = np.diff(np.cumsum(loss_N[order])[ends - 1], prepend=0.0) / sizes
    accepted = np.arange(1, len(order) + 1)
    return float((np.cumsum(np.repeat(means, sizes)) / accepted).mean())


def coverage_at_risk(confidence: Numbers, loss: Numbers, risk: float) -> float:
    """Return the largest share that can be accepted with a mean loss of at most ``risk``.

    The threshold is read off the same rows, so on rows used for choosing it the figure flatters.
    0 where no threshold keeps the risk. Errors are those of `risk_coverage`.
    """
    coverage_T, risk_T = risk_coverage(confidence, loss)
    kept = coverage_T[risk_T <= risk + 1e-12]  # sums are rounded
    return float(kept.max(initial=0.0))


def _rows(first: Numbers, second: Numbers, name: str, other: str) -> tuple[Float64, Float64]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise InputError(
            f"{name} and {other}: expected the same number of rows, at least one, in one dimension;"
            f" got shapes {a.shape} and {b.shape}"
        )
    for label, values in ((name, a), (other, b)):
        if np.isnan(values).any():
            raise InputError(f"{label}: row {np.flatnonzero(np.isnan(values))[0]} is NaN")
    return a, b


def _extreme(values: Float64) -> float:
    return float(values.min() if values.min() < 0 else values.max())


def _assign(claim_N: Float64, bins: int, scheme: str) -> Ints:
    if scheme == "equal-width":
        return np.minimum((claim_N * bins).astype(np.int64), bins - 1)
    if scheme == "equal-mass":
        # A row's bin is that of the first row of equal claim.
        first_N = np.searchsorted(np.sort(claim_N), claim_N, side="left")
        return np.asarray(first_N * bins // len(claim_N), dtype=np.int64)
    raise unknown_name("binning scheme", scheme, get_args(Scheme))


def _ends_of_ties(descending_N: Float64) -> Ints:
    """Return how many rows are accepted at each distinct value, ascending."""
    changes = np.flatnonzero(np.diff(descending_N)) + 1
    return np.append(changes, len(descending_N)).astype(np.int64)
