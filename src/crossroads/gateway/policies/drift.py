"""Do prompts still look like those the router knows?

Each new prompt gets a score of nearness, and each window of prompts is compared with a reference
by the two-sample Kolmogorov-Smirnov test. Windows do not overlap, so without drift each of them
alarms with the stated probability, at most: with 0.001 and windows of 200, once in 200,000 prompts.
"Without drift" means: prompts drawn like the reference. The probability is over references too: all
windows are compared with one, so where chance made it odd they alarm more often, and else less.

Where the score comes from, the first that there is:

``sdm``       distance of the artefact's verifier; the reference is its calibration half, which
              holds as many right as wrong choices, each kind weighted by its share among the
              held-out prompts the artefact was measured on
``sdm-first`` the same distance where the artefact does not tell that share; the reference is the
              first prompts served
``training``  cosine to the nearest of training prompts that the artefact keeps (``knn`` does); the
              reference is other training prompts
``first``     the same among the first prompts served: no alarm before them, and none for traffic
              that was strange from the start

Prompts that come again and are remembered count once.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from crossroads.gateway.policies.estimates import Estimate
from crossroads.gateway.policies.settings import DriftSettings
from crossroads.prompts.fitted import FittedRouter
from crossroads.prompts.route_verification import RIGHT

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_LEAST_TRAINING = 200  # prompts: fewer are no reference


@dataclass(frozen=True)
class Reference:
    """What scores usually are.

    Attributes
    ----------
    values : ascending
    weights : of each, summing to 1
    size : number of equally weighted values that would tell as much
    """

    values: Float64
    weights: Float64
    size: float

    @classmethod
    def of(cls, values: Float64, weights: Float64 | None = None, size: float = 0.0) -> Reference:
        """Return the reference of values, weighted alike by default."""
        if weights is None:
            weights, size = np.full(len(values), 1 / len(values)), float(len(values))
        order = np.argsort(values, kind="stable")
        return cls(values[order], weights[order] / weights.sum(), size)

    @property
    def mean(self) -> float:
        return float(self.values @ self.weights)


class _Score(Protocol):
    source: str
    reference: Reference | None  # None while there is none

    def copy(self) -> _Score:
        """Return one that learns on for itself."""
        ...

    def of(self, batch: Sequence[Estimate]) -> list[float]: ...


class Drift:
    """Watches the estimates of one router.

    Parameters
    ----------
    fitted : the router
    settings : window, rate of false alarms, size of the reference
    """

    def __init__(self, fitted: FittedRouter, settings: DriftSettings) -> None:
        from scipy.special import kolmogi  # loaded only where somebody watches

        self._settings = settings
        self._quantile = float(kolmogi(settings.false_alarms))
        self._score = _score_of(fitted, settings)
        self._window: list[float] = []
        self.num_prompts = self.num_windows = self.num_alarms = 0
        self._last: dict[str, Any] = {}

    def adopt(self, before: Drift) -> None:
        """Go on where the watch over the same router under the same settings was."""
        vars(self).update(vars(before))
        self._window = list(before._window)  # the policy before may serve on for a while
        self._score = before._score.copy()
        self._last = dict(before._last)

    def seen(self, batch: Sequence[Estimate]) -> None:
        """Count new prompts; test when a window is full."""
        self.num_prompts += len(batch)
        self._window += self._score.of(batch)
        size = self._settings.window
        while len(self._window) >= size:
            self._test(np.array(self._window[:size]))
            del self._window[:size]

    def _test(self, window: Float64) -> None:
        reference = self._score.reference
        assert reference is not None
        statistic = ks_statistic(reference.values, window, reference.weights)
        effective = reference.size * len(window) / (reference.size + len(window))
        threshold = self._quantile / np.sqrt(effective)
        is_alarm = bool(statistic > threshold)
        self.num_windows += 1
        self.num_alarms += is_alarm
        self._last = {
            "is_alarm": is_alarm,
            "statistic": statistic,
            "threshold": float(threshold),
            "mean": float(window.mean()),
            "reference_mean": reference.mean,
        }

    def state(self) -> dict[str, Any]:
        """Return plain data; ``state`` is ``learning``, ``ok`` or ``alarm`` by the last window."""
        name = "learning"
        if self._last:
            name = "alarm" if self._last["is_alarm"] else "ok"
        return {
            "state": name,
            "source": self._score.source,
            "window": self._settings.window,
            "false_alarms_per_window": self._settings.false_alarms,
            "prompts": self.num_prompts,
            "windows": self.num_windows,
            "alarms": self.num_alarms,
            "last": dict(self._last),
        }


def ks_statistic(one_sorted: Float64, other: Float64, weights: Float64 | None = None) -> float:
    """Return the greatest distance between two empirical distributions, the first one sorted.

    ``weights`` are those of the first, summing to 1; by default all are alike.
    """
    points = np.concatenate([one_sorted, other])
    upto = np.searchsorted(one_sorted, points, side="right")
    if weights is None:
        below_one = upto / len(one_sorted)
    else:
        below_one = np.concatenate([[0.0], weights.cumsum()])[upto]
    below_other = np.searchsorted(np.sort(other), points, side="right") / len(other)
    return float(np.abs(below_one - below_other).max())


class _SdmScore:
    """Distance of the verifier, in [0, 1]; 1 is as near as any calibrated prompt."""

    def __init__(self, reference: Reference | None, size: int) -> None:
        self.source = "sdm-first" if reference is None else "sdm"
        self.reference = reference
        self._size = size
        self._first: list[float] = []

    def of(self, batch: Sequence[Estimate]) -> list[float]:
        found = [e.verification.distance for e in batch if e.verification is not None]
        if self.reference is not None:
            return found
        self._first += found
        if len(self._first) >= self._size:
            self.reference = Reference.of(np.array(self._first[: self._size]))
            self._first = []
        return []

    def copy(self) -> _SdmScore:
        other = copy(self)
        other._first = list(self._first)
        return other


class _NearestScore:
    """Cosine to the nearest of some prompts, learnt from rows given or from the first served."""

    def __init__(self, source: str, rows: Float32 | None, size: int) -> None:
        self.source = source
        self.reference: Reference | None = None
        self._size = size
        self._rows: list[Float32] = []
        self._support: Float32 = np.zeros((0, 0), dtype=np.float32)
        if rows is not None:
            picks = np.random.default_rng(0).permutation(len(rows))[:size]
            self._learn(rows[picks])

    def of(self, batch: Sequence[Estimate]) -> list[float]:
        rows = [estimate.embedding for estimate in batch if estimate.embedding is not None]
        if self.reference is not None:
            found: list[float] = (np.stack(rows) @ self._support.T).max(axis=1).tolist()
            return found
        self._rows += rows
        if len(self._rows) >= self._size:
            self._learn(np.stack(self._rows[: self._size]))
            self._rows = []
        return []

    def _learn(self, rows: Float32) -> None:
        """Keep one half to be near to; the other half says how near is usual."""
        half = len(rows) // 2
        self._support = np.ascontiguousarray(rows[:half], dtype=np.float32)
        nearest = (rows[half:] @ self._support.T).max(axis=1)
        self.reference = Reference.of(nearest.astype(np.float64))

    def copy(self) -> _NearestScore:
        other = copy(self)
        other._rows = list(self._rows)
        return other


def _score_of(fitted: FittedRouter, settings: DriftSettings) -> _Score:
    if fitted.verifier is not None:
        return _SdmScore(_calibrated(fitted), settings.reference)
    rows = fitted.router.state().get("embeddings")
    if rows is not None and rows.ndim == 2 and len(rows) >= _LEAST_TRAINING:
        return _NearestScore("training", rows, settings.reference)
    return _NearestScore("first", None, settings.reference)


def _calibrated(fitted: FittedRouter) -> Reference | None:
    """Return the distances of the calibration half as served traffic mixes right and wrong choices.

    None where the artefact does not tell the share of right choices, or has only one kind.
    """
    assert fitted.verifier is not None
    told = fitted.metrics.get("verification", {})
    right, measured = told.get("right"), told.get("num_test")
    if not right or not measured or right >= 1:
        return None
    half = fitted.verifier.verifier.estimators[0].calibration
    is_right = half.label == RIGHT
    num_right = int(is_right.sum())
    num_wrong = len(is_right) - num_right
    if not num_right or not num_wrong:
        return None
    weights = np.where(is_right, right / num_right, (1 - right) / num_wrong)
    # The share is an estimate itself: its error adds to that of the two parts.
    error = right**2 / num_right + (1 - right) ** 2 / num_wrong + right * (1 - right) / measured
    return Reference.of(half.distance, weights, 1 / error)
