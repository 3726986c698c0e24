"""Quality and cost of a deployed router at every trade-off, by its estimates of recent prompts.

The estimates are the router's own claims. What was measured on held-out prompts when it was fitted
stands beside them; the artefact keeps that for one decision rule only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.gateway.policies.estimates import Estimate
from crossroads.prompts.decide import BudgetRule, DecisionRule
from crossroads.prompts.fitted import FittedRouter
from crossroads.prompts.metrics import tradeoff_curve

Float64 = npt.NDArray[np.float64]

_RECENT = 512  # prompts
_MOST_POINTS = 48
_MEASURED = ("quality", "cost_usd", "best_single", "best_single_quality", "best_single_cost_usd")


class Frontier:
    """Keeps the estimates of the last distinct prompts.

    Parameters
    ----------
    fitted : the router
    columns : places of the policy's models among the router's
    """

    def __init__(self, fitted: FittedRouter, columns: Sequence[int]) -> None:
        self._fitted = fitted
        self._columns = [*columns]
        self._models = [fitted.models[k] for k in columns]
        self._cost = fitted.mean_cost[self._columns]
        self._recent: deque[Sequence[float]] = deque(maxlen=_RECENT)  # of all models

    def seen(self, batch: Sequence[Estimate]) -> None:
        """Remember estimates, the oldest make room."""
        for estimate in batch:
            self._recent.append(estimate.quality)

    def adopt(self, before: Frontier) -> None:
        """Take over the estimates that the same router made before a reload."""
        self._recent = before._recent

    def point(self, rule: DecisionRule) -> dict[str, Any]:
        """Return what a rule would have done with the recent prompts.

        ``quality`` is the mean estimate and ``usd`` the mean expected cost of a call, ``shares``
        the share of each model; all None or empty before the first prompt, ``usd`` also where a
        cost is unknown.
        """
        quality = self._estimates()
        found: dict[str, Any] = {"rule": str(rule), "num_prompts": len(quality)}
        if len(quality) == 0:
            return {**found, "quality": None, "usd": None, "shares": {}}
        cost = np.where(np.isfinite(self._cost), self._cost, 0.0)
        share_K = np.zeros(len(self._models))
        total = 0.0
        rows = np.arange(len(quality))
        for column_N, weight in _sides(rule, quality, cost):
            share_K += weight * np.bincount(column_N, minlength=len(share_K)) / len(rows)
            total += weight * float(quality[rows, column_N].mean())
        known = bool(np.isfinite(self._cost[share_K > 0]).all())
        return {
            **found,
            "quality": min(max(total, 0.0), 1.0),
            "usd": float(share_K @ cost) if known else None,
            "shares": dict(zip(self._models, share_K.tolist(), strict=True)),
        }

    def describe(self, rule: DecisionRule) -> dict[str, Any]:
        """Return the frontier, the operating point, each model alone, and what was measured."""
        metrics = self._fitted.metrics
        spend = self._fitted.spend
        return {
            "points": self._points(),
            "operating_point": self.point(rule),
            "models": self._singles(),
            "measured": {name: metrics[name] for name in _MEASURED if name in metrics},
            "spend": None if spend is None else spend.to_rows(),
        }

    def _estimates(self) -> Float64:
        if not self._recent:
            return np.zeros((0, len(self._columns)))
        return np.array(self._recent, dtype=np.float64)[:, self._columns]

    def _points(self) -> list[dict[str, float]]:
        """Return points of the trade-off, from best quality to least cost."""
        quality = self._estimates()
        if len(quality) == 0 or not np.isfinite(self._cost).all():
            return []
        cost = np.broadcast_to(self._cost, quality.shape)
        curve = tradeoff_curve(quality, self._cost, quality, cost)
        last = len(curve.price) - 1
        kept = np.unique(np.linspace(0, last, min(_MOST_POINTS, last + 1)).astype(int))
        return [
            {
                "price": float(curve.price[i]),
                "usd": float(curve.cost[i]),
                "quality": float(curve.quality[i]),
            }
            for i in kept
        ]

    def _singles(self) -> list[dict[str, Any]]:
        quality = self._estimates()
        mean = (
            np.clip(quality, 0, 1).mean(axis=0).tolist()
            if len(quality)
            else [None] * len(self._models)
        )
        cost = [float(usd) if np.isfinite(usd) else None for usd in self._cost]
        return [
            {"model": model, "quality": q, "usd": usd}
            for model, q, usd in zip(self._models, mean, cost, strict=True)
        ]


def _sides(
    rule: DecisionRule, quality: Float64, cost: Float64
) -> list[tuple[npt.NDArray[Any], float]]:
    if isinstance(rule, BudgetRule):
        low, high = rule.sides(quality, cost)
        return [(low, 1.0 - rule.share), (high, rule.share)]
    return [(rule.choose(quality, cost), 1.0)]
