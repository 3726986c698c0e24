"""Live regret: what always asking the best single model would have earned more.

Each model's value is the doubly robust estimate from the served policy's own exploration, and the
regret is the best of them less what was served. The interval holds for all models at once
(Bonferroni) and at every moment at once: it is an asymptotic confidence sequence (Waudby-Smith and
others, Time-uniform central limit theory and asymptotic confidence sequences, 2024), so that a
dashboard may be watched and acted on whenever it looks convincing. That guarantee is for the calls
from a fixed start on. ``regret_of_ledger`` looks at a window that slides and forgets: there each
look has its level, and many looks together do not. Either result says so in ``method``.

What is compared is every model on the calls that all of them might have answered. If one of them is
not explored there, it might be the best: then nothing is claimed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossroads.core.errors import InputError
from crossroads.gateway.evaluation.candidates import FixedModel
from crossroads.gateway.evaluation.estimators import overlap, terms
from crossroads.gateway.evaluation.intervals import clusters, standard_error
from crossroads.gateway.evaluation.log import Log, build_log, rewards_of
from crossroads.gateway.evaluation.reward_model import expected_rewards
from crossroads.gateway.evaluation.settings import EvaluationSettings
from crossroads.gateway.evaluation.support import MOST_LEFT_OUT, SMALL, supported_models
from crossroads.gateway.ledger.reading import Filters, LedgerReader

METHOD = (
    "doubly robust, asymptotic confidence sequence, all models at once; valid at every look as "
    "long as every log begins with the same call"
)
WINDOW_METHOD = (
    "doubly robust, interval of an asymptotic confidence sequence, all models at once; over a "
    "sliding window, valid at each single look"
)
_TIGHTEST_AT = 500.0  # calls at which the sequence is narrowest
_LEAST = 30  # calls below which nothing is said


@dataclass(frozen=True, kw_only=True, slots=True)
class Against:
    """The served policy against always asking one model.

    ``value`` is None where the log does not support the model: too many calls (``unsupported``, a
    share) could not have gone to it. ``difference`` is value less served, with its interval.
    """

    model: str
    value: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    unsupported: float = 0.0


def live_regret(log: Log, *, level: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """Return plain data: the regret against the best fixed model, and every model's part.

    ``regret`` is the largest of the models' estimated values less the served mean reward; negative
    where the policy beats every single model. ``low`` and ``high`` hold for the true regret against
    the truly best of the models. With fewer than 30 calls, or where ``unsupported`` names models
    that more than 1 in 20 calls could not have gone to, they are None and ``why`` says so.
    ``left_out`` counts calls that some model might not answer, and those, at most 1 in 20 for each
    model, that could not have gone to it: the regret is that of the others.

    Raises InputError unless 0 < level < 1.
    """
    if not 0 < level < 1:
        raise InputError(f"regret: expected a level between 0 and 1, got {level!r}")
    whole = len(log)
    log, lost = _comparable(log)
    facts = {**_nothing(len(log), level), "left_out": whole - len(log)}
    if len(log) < _LEAST:
        kind = "judged calls that every model might answer"
        return {**facts, "why": f"{len(log)} {kind}; at least {_LEAST} are needed"}
    facts["served"] = float(log.reward.mean())
    unsupported = {name: share for name, share in lost.items() if share > MOST_LEFT_OUT}
    supported = _against(log, [name for name in lost if name not in unsupported], level, seed)
    unknown = [Against(model=n, value=None, unsupported=s) for n, s in unsupported.items()]
    facts["models"] = [_plain(each) for each in (*supported, *unknown)]
    facts["unsupported"] = list(unsupported)
    if unsupported:
        return {**facts, "why": _why_unknown(log, unsupported)}
    best = max(supported, key=lambda each: each.difference or 0.0)
    return {
        **facts,
        "regret": best.difference,
        "best_model": best.model,
        "low": max(each.low for each in supported if each.low is not None),
        "high": max(each.high for each in supported if each.high is not None),
    }


def _comparable(log: Log) -> tuple[Log, dict[str, float]]:
    """Return the calls that can be compared on, and the share of calls each model is missing on.

    Compared are the models that a policy chose, might have chosen, or estimated: a price alone
    makes no candidate, since a router knows those of models that its policy leaves out.
    """
    known_NK = (np.nan_to_num(log.probability) > SMALL) | np.isfinite(log.score)
    known_NK[np.arange(len(log)), log.action] = True
    columns_C = np.flatnonzero(known_NK.any(axis=0))
    if log.eligible is not None:
        log = log.take(np.flatnonzero(log.eligible[:, columns_C].all(axis=1)))
    if not len(log):
        return log, {}
    lost_NC = ~supported_models(log)[:, columns_C]
    lost_C = lost_NC.mean(axis=0)
    is_lost_N = lost_NC[:, lost_C <= MOST_LEFT_OUT].any(axis=1)
    return log.take(np.flatnonzero(~is_lost_N)), {
        log.models[k]: float(share) for k, share in zip(columns_C, lost_C, strict=True)
    }


def _why_unknown(log: Log, unsupported: Mapping[str, float]) -> str:
    told = ", ".join(f"{100 * lost:.3g} % to {name}" for name, lost in unsupported.items())
    is_explored = bool((log.propensity < 1).any())
    remedy = (
        "widen explore's margin, or lower its floor; what a cap on cost rules out is never explored"
        if is_explored
        else "add explore to it"
    )
    return f"the served policy could not have sent every call to every model (not {told}): {remedy}"


def regret_of_ledger(
    reader: LedgerReader, settings: EvaluationSettings, *, policy: str | None = None
) -> dict[str, Any]:
    """Return ``live_regret`` over the latest judged calls of a ledger, with ``window_hours``.

    Blocks for as long as reading and computing take: for a thread off the event loop. Raises
    UnavailableError where the database cannot be reached.
    """
    since = time.time() - 3_600 * settings.window_hours
    nothing = {**_nothing(0, settings.level), "method": WINDOW_METHOD}
    rewards = None
    if settings.reward == "complete":
        records = reader.recent(settings.most_calls, Filters(since=since))
    else:
        records = reader.judged(settings.most_calls, since)
        rewards = rewards_of(reader.feedback(since), kind=settings.reward)
    if not records:
        return {**nothing, "why": _why_nothing(settings)}
    try:
        log = build_log(records, rewards, policy=policy)
    except InputError as error:
        return {**nothing, "why": str(error)}
    found = live_regret(log, level=settings.level)
    return {**found, "method": WINDOW_METHOD, "window_hours": settings.window_hours}


def _why_nothing(settings: EvaluationSettings) -> str:
    within = f"in the last {settings.window_hours:g} hours"
    if settings.reward == "complete":
        return f"no call {within}"
    return (
        f"no judged call {within}; send feedback to /v1/feedback, or set evaluation.reward to "
        "complete"
    )


def _nothing(calls: int, level: float) -> dict[str, Any]:
    """Return the facts of a regret that is not known."""
    unknown = dict.fromkeys(("served", "regret", "low", "high", "best_model"))
    return {
        **unknown,
        "calls": calls,
        "method": METHOD,
        "level": level,
        "models": [],
        "unsupported": [],
        "left_out": 0,
        "why": "",
    }


def _against(log: Log, models: Sequence[str], level: float, seed: int) -> list[Against]:
    """Compare with each of the models; every call could have gone to any of them."""
    expected, _ = expected_rewards(log, seed=seed)
    cluster_N = clusters(log.session)
    supported = supported_models(log)
    alpha = (1 - level) / max(len(models), 1)
    found = []
    for model in models:
        target = FixedModel(model).target(log)
        met = overlap(target.probability, log.action, log.propensity, supported_NK=supported)
        value = terms("dr", met, log.reward, expected, clip=np.inf)
        difference = value.minus(log.reward)
        half = anytime_factor(int(cluster_N.max()) + 1, alpha) * standard_error(
            difference, cluster_N
        )
        middle = difference.value
        found.append(
            Against(
                model=model,
                value=value.value,
                difference=middle,
                low=middle - half,
                high=middle + half,
            )
        )
    return found


def anytime_factor(n: int, alpha: float) -> float:
    """Return the half width of the sequence after ``n`` observations, in standard errors.

    ``sqrt((1 + 1 / (n rho^2)) * log((n rho^2 + 1) / alpha^2))`` with rho chosen so that it is
    narrowest near 500. A single look would have 1.96 for alpha 0.05.
    """
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / _TIGHTEST_AT
    t = n * rho2
    return math.sqrt((1 + 1 / t) * math.log((t + 1) / alpha**2))


def _plain(each: Against) -> dict[str, Any]:
    return {name: getattr(each, name) for name in Against.__slots__}
