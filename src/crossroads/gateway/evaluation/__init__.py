"""Closing the loop: what other policies would have earned, by the ledger of the one served."""

from __future__ import annotations

from crossroads.gateway.evaluation.candidates import (
    Candidate,
    FixedModel,
    LoggedScores,
    RouterCandidate,
    Split,
    Target,
    Uniform,
)
from crossroads.gateway.evaluation.intervals import Interval
from crossroads.gateway.evaluation.log import Log, build_log, rewards_of
from crossroads.gateway.evaluation.off_policy import Evaluation, off_policy
from crossroads.gateway.evaluation.regret import live_regret, regret_of_ledger
from crossroads.gateway.evaluation.settings import EvaluationSettings

__all__ = [
    "Candidate",
    "Evaluation",
    "EvaluationSettings",
    "FixedModel",
    "Interval",
    "Log",
    "LoggedScores",
    "RouterCandidate",
    "Split",
    "Target",
    "Uniform",
    "build_log",
    "live_regret",
    "off_policy",
    "regret_of_ledger",
    "rewards_of",
]
