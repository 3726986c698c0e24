"""Off-policy evaluation: what a candidate would have earned and cost, from another policy's log.

``off_policy`` gives every estimator of ``estimators`` with intervals, the difference to the policy
that was served, and how well the two overlap. Where the candidate chooses models that the logging
policy could not have chosen, nothing in the log tells what these would have earned. A few such
calls are left out and counted; where there are more, no point estimate is given, only bounds that
hold whatever those rewards are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from crossroads.core.errors import InputError
from crossroads.gateway.evaluation.candidates import Candidate, LoggedScores, Target
from crossroads.gateway.evaluation.estimators import ESTIMATORS, Overlap, overlap, terms
from crossroads.gateway.evaluation.intervals import (
    Interval,
    Terms,
    clusters,
    intervals,
    standard_error,
)
from crossroads.gateway.evaluation.log import Float64, Ints, Log
from crossroads.gateway.evaluation.reward_model import RewardModel, cross_fitted, expected_rewards
from crossroads.gateway.evaluation.support import (
    SMALL,
    Support,
    may_leave_out,
    support,
    supported_models,
)

_SUSPICIOUS = 4.0  # standard errors by which a mean weight may miss what it must be
_FEW = 100.0  # an effective sample below it is too small for the intervals to be trusted
_FEW_OBSERVED = 30.0  # choices of the candidate's own below which intervals know too little
_BOUNDED = ("ips", "dr")  # estimators that bounds are given for
LEFT_OUT = "on which the candidate's choice could not have been made"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a log says about a candidate. Rewards are in [0, 1], costs in USD a call.

    Attributes
    ----------
    candidate : its name
    num_calls, num_sessions : judged calls, and sessions, that it was evaluated on
    value : estimator -> mean reward under the candidate
    difference : estimator -> value less the served policy's mean reward, paired call by call
    cost, cost_difference : the same of the cost
    expected_cost : cost under the candidate by the prices known when the calls were decided; None
        where a price is missing
    served, served_cost : mean reward and cost of what was served
    bounds : estimator -> (low, high), where the candidate leaves the log's support
    unsupported : share of the candidate's choices with zero propensity; 0 where the few calls with
        such choices were left out, and counted in ``dropped``
    effective_size : number of calls the weights are worth
    support : on how many calls the candidate is not the served policy again, and how often its own
        choice was seen there
    weights : ``mean`` (1 less ``unsupported`` when propensities are right), ``max``, ``clip``,
        ``zero`` (share of calls that tell nothing about the candidate)
    reward_model : what the doubly robust estimates used
    judged : model -> share of its calls that were judged
    shares : model -> probability that the candidate chooses it
    warnings : sentences
    """

    candidate: str
    num_calls: int
    num_sessions: int
    value: Mapping[str, Interval]
    difference: Mapping[str, Interval]
    cost: Mapping[str, Interval]
    cost_difference: Mapping[str, Interval]
    expected_cost: Interval | None
    served: Interval
    served_cost: Interval
    bounds: Mapping[str, tuple[float, float]]
    unsupported: float
    effective_size: float
    support: Support
    weights: Mapping[str, float]
    reward_model: str
    judged: Mapping[str, float]
    shares: Mapping[str, float]
    dropped: Mapping[str, int] = field(default_factory=dict)
    level: float = 0.95
    warnings: tuple[str, ...] = ()

    @property
    def is_refused(self) -> bool:
        """Whether only bounds can be given."""
        return self.unsupported > 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        plain: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Interval):
                plain[name] = value.to_dict()
            elif isinstance(value, Support):
                plain[name] = asdict(value)
            elif isinstance(value, Mapping):
                plain[name] = {
                    key: each.to_dict() if isinstance(each, Interval) else each
                    for key, each in value.items()
                }
            else:
                plain[name] = list(value) if isinstance(value, tuple) else value
        return {**plain, "is_refused": self.is_refused}


def off_policy(
    log: Log,
    candidate: Candidate | Target,
    *,
    reward_model: RewardModel | None = None,
    clip: float | None = None,
    level: float = 0.95,
    draws: int = 1_000,
    seed: int = 0,
) -> Evaluation:
    """Estimate what a candidate would have earned on the logged calls.

    Raises InputError for an empty log, or one that lacks what candidate or reward model need.

    Parameters
    ----------
    log : decisions with propensities and rewards, see ``build_log``
    candidate : a policy, or what it would have done
    reward_model : ``ridge``, ``mean`` or ``scores``, see ``expected_rewards``
    clip : largest weight of ``clipped_ips`` and ``switch_dr``; sqrt(N) by default
    level : of the intervals
    draws : of the bootstrap over sessions; 0 for none
    seed : of folds and bootstrap
    """
    if len(log) == 0:
        raise InputError("off-policy evaluation: the log is empty")
    if isinstance(candidate, LoggedScores):
        log = candidate.answerable(log)
    target = candidate if isinstance(candidate, Target) else candidate.target(log)
    log, target = _answerable(_widened(log, target.models), target)
    met = _overlap(log, target)
    expected, made_by = expected_rewards(
        log, kind=reward_model, quality_NK=target.quality, seed=seed
    )
    bound = float(np.sqrt(len(log))) if clip is None else clip
    cluster_N = clusters(log.session)

    refused = float(met.unsupported.mean()) > SMALL
    parts = {
        ("served", ""): Terms(log.reward),
        ("served_cost", ""): Terms(log.cost),
        **_by_price(log, target.probability),
    }
    prices = _expected_costs(log, seed)
    for name in ESTIMATORS:
        of = terms(name, met, log.reward, expected, clip=bound)
        of_cost = terms(name, met, log.cost, prices, clip=bound)
        if refused and name in _BOUNDED:
            parts["lower", name], parts["upper", name] = of, of.plus(met.unsupported)
        elif not refused:
            parts["value", name], parts["difference", name] = of, of.minus(log.reward)
            parts["cost", name], parts["cost_difference", name] = of_cost, of_cost.minus(log.cost)
    found = intervals(parts, cluster_N, level=level, draws=draws, seed=seed)

    def every(kind: str) -> dict[str, Interval]:
        return {name: found.get((kind, name), Interval(None)) for name in ESTIMATORS}

    return Evaluation(
        candidate=target.name,
        num_calls=len(log),
        num_sessions=int(cluster_N.max()) + 1,
        value=every("value"),
        difference=every("difference"),
        cost=every("cost"),
        cost_difference=every("cost_difference"),
        expected_cost=found.get(("expected_cost", "")),
        served=found["served", ""],
        served_cost=found["served_cost", ""],
        bounds={
            name: _bounds(found["lower", name], found["upper", name])
            for name in (_BOUNDED if refused else ())
        },
        unsupported=float(met.unsupported.mean()) if refused else 0.0,
        effective_size=met.effective_size,
        support=support(log, met),
        weights=_weights(met, bound),
        reward_model=made_by,
        judged=_judged(log),
        shares=dict(zip(log.models, target.probability.mean(axis=0).tolist(), strict=True)),
        dropped=dict(log.dropped),
        level=level,
        warnings=_warnings(log, met, cluster_N),
    )


def _widened(log: Log, models: tuple[str, ...]) -> Log:
    """Return the log with columns for models that only the candidate knows."""
    extra = len(models) - len(log.models)
    if extra == 0:
        return log

    def pad(values: Float64, fill: float) -> Float64:
        return np.pad(values, ((0, 0), (0, extra)), constant_values=fill)

    eligible = log.eligible
    if eligible is not None:
        eligible = np.pad(eligible, ((0, 0), (0, extra)), constant_values=True)
    known = np.isfinite(log.probability).all(axis=1, keepdims=True)
    probability = np.where(known, pad(np.nan_to_num(log.probability), 0.0), np.nan)
    return replace(
        log,
        models=models,
        probability=probability,
        score=pad(log.score, np.nan),
        price=pad(log.price, np.nan),
        eligible=eligible,
    )


def _answerable(log: Log, target: Target) -> tuple[Log, Target]:
    """Return the calls on which the candidate's choices could have been made, others counted.

    Where the others are too many to be left out, nothing is.
    """
    lost_N = _overlap(log, target).unsupported > SMALL
    if not may_leave_out(lost_N):
        return log, target
    kept = replace(log.take(~lost_N), dropped={**log.dropped, LEFT_OUT: int(lost_N.sum())})
    quality = None if target.quality is None else target.quality[~lost_N]
    return kept, replace(target, probability=target.probability[~lost_N], quality=quality)


def _overlap(log: Log, target: Target) -> Overlap:
    return overlap(
        target.probability, log.action, log.propensity, supported_NK=supported_models(log)
    )


def _expected_costs(log: Log, seed: int) -> Float64:
    """Return the prices known when the calls were decided, else a cross-fitted mean."""
    if np.isfinite(log.price).all():
        return log.price
    fitted = cross_fitted(log, log.cost, kind="mean", seed=seed)
    return np.where(np.isfinite(log.price), log.price, fitted)


def _by_price(log: Log, probability: Float64) -> dict[tuple[str, str], Terms]:
    """Return the terms of the cost by price; empty where a price is missing."""
    used = probability > 0
    if not np.isfinite(log.price[used]).all():
        return {}
    cost = (probability * np.where(used, log.price, 0.0)).sum(axis=1)
    return {("expected_cost", ""): Terms(cost)}


def _bounds(lower: Interval, upper: Interval) -> tuple[float, float]:
    """Return the outermost ends of both, within [0, 1]."""
    lows = [v for v in (lower.low, lower.bootstrap_low) if v is not None]
    highs = [v for v in (upper.high, upper.bootstrap_high) if v is not None]
    return max(0.0, min(lows, default=0.0)), min(1.0, max(highs, default=1.0))


def _weights(met: Overlap, clip: float) -> dict[str, float]:
    return {
        "mean": float(met.weight.mean()),
        "max": float(met.weight.max()),
        "clip": clip,
        "zero": float((met.weight == 0).mean()),
    }


def _judged(log: Log) -> dict[str, float]:
    counts = np.bincount(log.action, minlength=len(log.models))
    return {
        model: float(counts[k]) / log.num_calls[model]
        for k, model in enumerate(log.models)
        if log.num_calls.get(model)
    }


def _warnings(log: Log, met: Overlap, cluster_N: Ints) -> tuple[str, ...]:
    found = []
    share = float(met.unsupported.mean())
    if share > SMALL:
        found.append(
            f"{100 * share:.2g} % of the candidate's choices have zero propensity in the log: only "
            "bounds are given; explore (explore: {epsilon: ...}, with a wider margin or a lower "
            "floor) to learn about them"
        )
    found += _on_weights(log, met, cluster_N)
    found += _on_support(support(log, met), len(log))
    counting = log.reward[met.weight > 0]
    if len(counting) and counting.min() == counting.max():
        found.append(
            f"every call that tells of the candidate has the same reward, {counting[0]:g}: the "
            "intervals are narrower than what is known"
        )
    shares = _judged(log)
    if shares and max(shares.values()) > 2 * min(shares.values()):
        found.append(
            "models are judged at very different rates; the estimates take judged calls as a fair "
            "sample"
        )
    if left_out := log.dropped.get(LEFT_OUT):
        found.append(
            f"{left_out} of {left_out + len(log)} calls are left out: the candidate would have "
            "made choices there that the served policy could not have made"
        )
    return tuple(found)


def _on_weights(log: Log, met: Overlap, cluster_N: Ints) -> list[str]:
    found = []
    weight_terms = Terms(met.weight + met.unsupported)
    error = max(standard_error(weight_terms, cluster_N), _null_error(log, met, cluster_N))
    if abs(weight_terms.value - 1) > max(_SUSPICIOUS * error, 1e-6):
        found.append(
            f"the mean weight is {met.weight.mean():.3f} and should be "
            f"{1 - met.unsupported.mean():.3f}: the recorded propensities are not those of the "
            "policy that was served, or the calls differ"
        )
    if met.effective_size < _FEW:
        found.append(
            f"the weights are worth {met.effective_size:.0f} calls: too few for the intervals to "
            "be trusted"
        )
    return found


def _null_error(log: Log, met: Overlap, cluster_N: Ints) -> float:
    """Return the standard error of the mean weight if the recorded probabilities are right.

    Rare choices with large weights may be missing from a log by chance alone, which the weights
    seen do not show. Calls of a session are taken as one draw. Where only propensities are
    recorded, nothing is added.
    """
    known = np.isfinite(log.probability) & (met.probability > 0)
    served_NK = np.where(known, log.probability, 1.0)
    square_N = np.where(known, met.probability**2 / served_NK, 0.0).sum(axis=1)
    mean_N = np.where(known, met.probability, 0.0).sum(axis=1)
    deviation_N = np.sqrt(np.maximum(square_N - mean_N**2, 0.0))
    sums_C = np.bincount(cluster_N, weights=deviation_N)
    return float(np.sqrt(np.square(sums_C).sum())) / len(log)


def _on_support(known: Support, num_calls: int) -> list[str]:
    if not known.differing or known.effective_size >= _FEW_OBSERVED:
        return []
    return [
        f"on {known.differing} of {num_calls} calls the served policy was less than half as likely "
        f"to make the candidate's choice, and that choice was seen on {known.observed} of them "
        f"(worth {known.effective_size:.0f}): the difference rests on these, and no interval shows "
        "how little that is; explore more, or judge more calls"
    ]
