"""Live regret: what always asking the best single model would have earned more.

Each model's value is the doubly robust estimate from the served policy's own exploration, and the
regret is the best of them less what was served. The interval holds for all models at once
(Bonferroni) and at every moment at once: it is an asymptotic confidence sequence (Waudby-Smith and
others, Time-uniform central limit theory and asymptotic confidence sequences, 2024), so that a
dashboard may be watched and acted on whenever it looks convincing. That guarantee is for the calls
from a fixed start on. ``regret_of_ledger`` looks at a window that slides and forgets: there each
look has its level, and many looks together do not. Either result says so in ``method``.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossroads.core.errors import InputError
from crossroads.gateway.evaluation.candidates import FixedModel
from crossroads.gateway.evaluation.estimators import overlap, terms
from crossroads.gateway.evaluation.intervals import clusters, standard_error
from crossroads.gateway.evaluation.log import Log, build_log, rewards_of
from crossroads.gateway.evaluation.off_policy import supported_models
from crossroads.gateway.evaluation.reward_model import expected_rewards
from crossroads.gateway.evaluation.settings import EvaluationSettings
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

    ``value`` is None where the log does not support the model: some calls could not have gone to
    it. ``difference`` is value less served, with its interval.
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
    the truly best of the supported models. With fewer than 30 calls, or where no model is
    supported, they are None and ``why`` says so. ``unsupported`` names models that some calls could
    not have gone to: of them nothing is claimed.

    Raises InputError unless 0 < level < 1.
    """
    if not 0 < level < 1:
        raise InputError(f"regret: expected a level between 0 and 1, got {level!r}")
    facts = _nothing(len(log), level)
    if len(log) < _LEAST:
        return {**facts, "why": f"{len(log)} judged calls; at least {_LEAST} are needed"}
    facts["served"] = float(log.reward.mean())
    found = _against(log, level, seed)
    supported = [each for each in found if each.difference is not None]
    facts["models"] = [_plain(each) for each in found]
    facts["unsupported"] = [each.model for each in found if each.difference is None]
    if not supported:
        return {**facts, "why": "no model is explored on every call; add explore to the policy"}
    best = max(supported, key=lambda each: each.difference or 0.0)
    return {
        **facts,
        "regret": best.difference,
        "best_model": best.model,
        "low": max(each.low for each in supported if each.low is not None),
        "high": max(each.high for each in supported if each.high is not None),
    }


def regret_of_ledger(
    reader: LedgerReader, settings: EvaluationSettings, *, policy: str | None = None
) -> dict[str, Any]:
    """Return ``live_regret`` over the latest judged calls of a ledger, with ``window_hours``.

    Blocks for as long as reading and computing take: for a thread off the event loop. Raises
    UnavailableError where the database cannot be reached.
    """
    since = time.time() - 3_600 * settings.window_hours
    rewards = None
    if settings.reward == "complete":
        records = reader.recent(settings.most_calls, Filters(since=since))
    else:
        records = reader.judged(settings.most_calls, since)
        rewards = rewards_of(reader.feedback(since), kind=settings.reward)
    try:
        log = build_log(records, rewards, policy=policy)
    except InputError as error:
        return {**_nothing(0, settings.level), "why": str(error), "method": WINDOW_METHOD}
    found = live_regret(log, level=settings.level)
    return {**found, "method": WINDOW_METHOD, "window_hours": settings.window_hours}


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
        "why": "",
    }


def _against(log: Log, level: float, seed: int) -> list[Against]:
    expected, _ = expected_rewards(log, seed=seed)
    cluster_N = clusters(log.session)
    supported = supported_models(log)
    alpha = (1 - level) / len(log.models)
    found = []
    for model in log.models:
        target = FixedModel(model).target(log)
        met = overlap(target.probability, log.action, log.propensity, supported_NK=supported)
        lost = float(met.unsupported.mean())
        if lost > 0:
            found.append(Against(model=model, value=None, unsupported=lost))
            continue
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
