"""What a log can tell of a candidate: where its choices could have been made, and where they were.

N calls, K models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossroads.gateway.evaluation.estimators import Overlap, effective_size
from crossroads.gateway.evaluation.log import Bools, Float64, Log

SMALL = 1e-9  # probability that is none
MOST_LEFT_OUT = (
    0.05  # share of calls that may be left out: beyond it the others are not the traffic
)
_MORE_LIKELY = 2.0  # times: a sure choice is one that was made with a probability below one half


def supported_models(log: Log) -> Bools:
    """Return which models the logging policy could have chosen, shape (N, K).

    Where the ledger has a propensity only, the models that such calls ever chose count.
    """
    unknown = ~np.isfinite(log.probability).all(axis=1)
    supported = np.nan_to_num(log.probability, nan=0.0) > SMALL
    if unknown.any():
        ever = np.zeros(len(log.models), dtype=bool)
        ever[log.action[unknown]] = True
        supported[unknown] = ever
    supported[np.arange(len(log)), log.action] = True
    return supported


def may_leave_out(lost_N: Bools) -> bool:
    """Whether calls that tell nothing are few enough for the others to stand for the traffic."""
    return bool(lost_N.any()) and float(lost_N.mean()) <= MOST_LEFT_OUT


@dataclass(frozen=True, kw_only=True, slots=True)
class Support:
    """How much a log tells of a candidate where it is not the served policy again.

    Attributes
    ----------
    differing : calls on which the candidate makes a model more than twice as likely as the logging
        policy did: one that always chooses, where its choice had a probability below one half
    observed : those of them on which such a model was chosen
    effective_size : number of calls the weights of the differing ones are worth
    """

    differing: int
    observed: int
    effective_size: float


def support(log: Log, met: Overlap) -> Support:
    """Return the support of a candidate that meets a log so. Unsupported choices do not count.

    Where the ledger has a propensity only, the other models had at most what it leaves.
    """
    rows = np.arange(len(log))
    left_N = 1.0 - log.propensity
    served_NK: Float64 = np.where(np.isfinite(log.probability), log.probability, left_N[:, None])
    served_NK[rows, log.action] = log.propensity
    favoured_NK = met.probability > np.maximum(_MORE_LIKELY * served_NK, SMALL)
    differs_N = favoured_NK.any(axis=1)
    return Support(
        differing=int(differs_N.sum()),
        observed=int(favoured_NK[rows, log.action].sum()),
        effective_size=effective_size(met.weight[differs_N]),
    )
