"""Estimators of what a policy would have earned, from what another one did.

With w = pi(a | x) / p(a | x), the probability of the logged choice under the candidate over that
under the logging policy, r the reward and q(x, a) a model of it that has not seen the call:

- ``ips``: mean w r (Horvitz and Thompson 1952). Unbiased; wide where w is large.
- ``snips``: sum w r / sum w (Swaminathan and Joachims, The Self-Normalized Estimator for
  Counterfactual Learning, 2015). Bias of order 1 / N, narrower, indifferent to a shift of r.
- ``clipped_ips``: mean min(w, clip) r. Biased downwards for rewards >= 0.
- ``dm``: mean sum_a pi q: as biased as q is; its interval does not know that.
- ``dr``: mean [sum_a pi q + w (r - q)] (Dudik, Langford and Li, Doubly Robust Policy Evaluation and
  Learning, 2011). Unbiased if p or q is right; narrow where q is good.
- ``switch_dr``: dr, but dm for the calls with w > clip (Wang, Agarwal and Dudik, Optimal and
  Adaptive Off-policy Evaluation in Contextual Bandits, 2017). Trades variance for q's bias there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossroads.gateway.evaluation.intervals import Terms
from crossroads.gateway.evaluation.log import Bools, Float64, Ints

UNBIASED = ("ips", "snips", "dr")
ESTIMATORS = ("ips", "snips", "clipped_ips", "dm", "dr", "switch_dr")


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How a candidate meets a log.

    Attributes
    ----------
    probability : float (N, K), the candidate's, where the logging policy could have chosen the
        model; 0 elsewhere
    unsupported : float (N,), the candidate's probability of models that the logging policy never
        chooses for this call: of these nothing can be known
    weight : float (N,), of the logged choice
    action : int (N,)
    """

    probability: Float64
    unsupported: Float64
    weight: Float64
    action: Ints

    @property
    def effective_size(self) -> float:
        """Number of calls the weights are worth."""
        return effective_size(self.weight)


def effective_size(weight_N: Float64) -> float:
    """Return (sum w)^2 / sum w^2, the number of calls that weights are worth; 0 without any."""
    squares = float(np.square(weight_N).sum())
    return float(weight_N.sum()) ** 2 / squares if squares > 0 else 0.0


def overlap(
    probability_NK: Float64, action_N: Ints, propensity_N: Float64, *, supported_NK: Bools
) -> Overlap:
    """Return the overlap of a candidate with a log; ``supported_NK``: who could be chosen."""
    rows = np.arange(len(action_N))
    inside = np.where(supported_NK, probability_NK, 0.0)
    return Overlap(
        probability=inside,
        unsupported=np.clip(1.0 - inside.sum(axis=1), 0.0, 1.0),
        weight=inside[rows, action_N] / propensity_N,
        action=action_N,
    )


def terms(
    estimator: str, met: Overlap, value_N: Float64, model_NK: Float64, *, clip: float
) -> Terms:
    """Return the terms of an estimator of the mean value under the candidate.

    ``value_N`` is the reward (or the cost) of each call, ``model_NK`` what a model expects of it,
    and ``clip`` the largest weight of the two estimators that bound it. The part of the candidate
    that has no support counts as 0.
    """
    weight = met.weight
    zero = np.zeros(len(weight))
    if estimator == "ips":
        return Terms(weight * value_N)
    if estimator == "snips":
        return Terms(zero, weight * value_N, weight)
    if estimator == "clipped_ips":
        return Terms(np.minimum(weight, clip) * value_N)
    expected = (met.probability * model_NK).sum(axis=1)
    if estimator == "dm":
        return Terms(expected)
    error = value_N - model_NK[np.arange(len(weight)), met.action]
    if estimator == "switch_dr":
        weight = np.where(weight <= clip, weight, 0.0)
    return Terms(expected + weight * error)
