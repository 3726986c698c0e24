"""Do prompts still look like those the router knows?

Each new prompt gets a score of nearness, and each window of prompts is compared with a reference
by the two-sample Kolmogorov-Smirnov test. Windows do not overlap, so without drift each of them
alarms with the stated probability, at most: with 0.001 and windows of 200, once in 200,000 prompts.
"Without drift" means: prompts drawn like the reference.

Where the score comes from, the first that there is:

``sdm``       distance of the artefact's verifier; the reference is its calibration half, which
              holds as many right as wrong choices
``training``  cosine to the nearest of training prompts that the artefact keeps (``knn`` does); the
              reference is other training prompts
``first``     the same among the first prompts served: no alarm before them, and none for traffic
              that was strange from the start

Prompts that come again and are remembered count once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from crossroads.gateway.policies.estimates import Estimate
from crossroads.gateway.policies.settings import DriftSettings
from crossroads.prompts.fitted import FittedRouter

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_LEAST_TRAINING = 200  # prompts: fewer are no reference


class _Score(Protocol):
    source: str
    reference: Float64  # ascending; empty while there is none

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
        statistic = ks_statistic(reference, window)
        effective = len(reference) * len(window) / (len(reference) + len(window))
        threshold = self._quantile / np.sqrt(effective)
        is_alarm = bool(statistic > threshold)
        self.num_windows += 1
        self.num_alarms += is_alarm
        self._last = {
            "is_alarm": is_alarm,
            "statistic": statistic,
            "threshold": float(threshold),
            "mean": float(window.mean()),
            "reference_mean": float(reference.mean()),
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


def ks_statistic(one_sorted: Float64, other: Float64) -> float:
    """Return the greatest distance between two empirical distributions, the first one sorted."""
    points = np.concatenate([one_sorted, other])
    below_one = np.searchsorted(one_sorted, points, side="right") / len(one_sorted)
    below_other = np.searchsorted(np.sort(other), points, side="right") / len(other)
    return float(np.abs(below_one - below_other).max())


class _SdmScore:
    """Distance of the verifier, in [0, 1]; 1 is as near as any calibrated prompt."""

    source = "sdm"

    def __init__(self, reference: Float64) -> None:
        self.reference = np.sort(reference)

    def of(self, batch: Sequence[Estimate]) -> list[float]:
        return [e.verification.distance for e in batch if e.verification is not None]


class _NearestScore:
    """Cosine to the nearest of some prompts, learnt from rows given or from the first served."""

    def __init__(self, source: str, rows: Float32 | None, size: int) -> None:
        self.source = source
        self.reference: Float64 = np.zeros(0)
        self._size = size
        self._rows: list[Float32] = []
        self._support: Float32 = np.zeros((0, 0), dtype=np.float32)
        if rows is not None:
            picks = np.random.default_rng(0).permutation(len(rows))[:size]
            self._learn(rows[picks])

    def of(self, batch: Sequence[Estimate]) -> list[float]:
        rows = [estimate.embedding for estimate in batch if estimate.embedding is not None]
        if len(self.reference):
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
        self.reference = np.sort(nearest.astype(np.float64))


def _score_of(fitted: FittedRouter, settings: DriftSettings) -> _Score:
    if fitted.verifier is not None:
        return _SdmScore(fitted.verifier.verifier.estimators[0].calibration.distance)
    rows = fitted.router.state().get("embeddings")
    if rows is not None and rows.ndim == 2 and len(rows) >= _LEAST_TRAINING:
        return _NearestScore("training", rows, settings.reference)
    return _NearestScore("first", None, settings.reference)
