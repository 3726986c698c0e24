"""Policies that might be deployed: with what probability would each have chosen each model?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from crossroads.core.errors import InputError, UsageError, unknown_name
from crossroads.gateway.evaluation.log import Bools, Float64, Log
from crossroads.prompts.decide import Argmax, BudgetRule, DecisionRule, parse_rule

if TYPE_CHECKING:
    from crossroads.prompts.fitted import FittedRouter


_WORST, _DEAREST = -1e6, 1e6  # quality and USD of a model that cannot be chosen


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a candidate would have done.

    Attributes
    ----------
    name : for people
    models : names of K models, those of the log first
    probability : float (N, K), rows sum to 1
    quality : float (N, K), the candidate's own estimates, or None
    """

    name: str
    models: tuple[str, ...]
    probability: Float64
    quality: Float64 | None = None


class Candidate(Protocol):
    def target(self, log: Log) -> Target:
        """Return what it would have done. Raises InputError where the log does not tell."""
        ...


@dataclass(frozen=True)
class FixedModel:
    """Always the same model."""

    model: str

    def target(self, log: Log) -> Target:
        return Split({self.model: 1.0}, name=f"always {self.model}").target(log)


@dataclass(frozen=True)
class Split:
    """A fixed split of the traffic, drawn anew for each call; weights are made to sum to 1."""

    weights: Mapping[str, float]
    name: str = "split"

    def target(self, log: Log) -> Target:
        for model in self.weights:
            if model not in log.models:
                raise unknown_name("model in the ledger", model, log.models)
        weights = np.array([self.weights.get(model, 0.0) for model in log.models])
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise UsageError("split: expected weights >= 0, at least one of them above 0")
        probability = _among_eligible(np.tile(weights / weights.sum(), (len(log), 1)), log)
        return Target(name=self.name, models=log.models, probability=probability)


@dataclass(frozen=True)
class Uniform:
    """Every model of the log with the same probability."""

    def target(self, log: Log) -> Target:
        return Split(dict.fromkeys(log.models, 1.0), name="uniform").target(log)


@dataclass(frozen=True)
class LoggedScores:
    """The logging router's own estimates under another decision rule: needs no text."""

    rule: str | DecisionRule

    def answerable(self, log: Log) -> Log:
        """Return the calls with logged estimates, the others counted. Raises InputError for none.

        Calls of a session that stays with its model have none, for example.
        """
        known = np.asarray(np.isfinite(log.score).any(axis=1))
        missing = int((~known).sum())
        if not missing:
            return log
        if missing == len(log):
            raise InputError(
                f"none of {len(log)} calls has estimates of quality in the ledger; name the "
                "learned policy with --logged-policy, or give --router"
            )
        dropped = {**log.dropped, "without logged estimates": missing}
        return replace(log.take(known), dropped=dropped)

    def target(self, log: Log) -> Target:
        rule = parse_rule(self.rule) if isinstance(self.rule, str) else self.rule
        known = np.isfinite(log.score)
        if not known.any(axis=1).all():
            raise InputError(
                f"{int((~known.any(axis=1)).sum())} of {len(log)} calls have no estimates of "
                "quality in the ledger; take those of answerable(log)"
            )
        _check_prices(rule, log.price, known, log.models)
        quality = np.where(known, log.score, -np.inf)
        cost = np.where(known, np.nan_to_num(log.price, nan=0.0), np.inf)
        return Target(
            name=f"logged estimates under {rule}",
            models=log.models,
            probability=choice_probability(rule, _finite(quality, _WORST), _finite(cost, _DEAREST)),
            quality=np.where(known, log.score, np.nan),
        )


@dataclass(frozen=True)
class RouterCandidate:
    """A fitted router, under its own rule or another; reads kept texts, else kept embeddings."""

    router: FittedRouter
    rule: str | None = None
    name: str = ""

    @classmethod
    def load(cls, folder: Path, rule: str | None = None) -> RouterCandidate:
        """Load an artefact. Raises InputError for a damaged one."""
        from crossroads.prompts.fitted import load_router

        return cls(load_router(folder), rule, name=folder.name)

    def target(self, log: Log) -> Target:
        decisions = self.router.decide(self._prompts(log), rule=self.rule)
        rule = parse_rule(decisions[0].rule)
        own = self.router.models
        if not set(own) & set(log.models):
            raise InputError(
                f"none of the models of router {self._called} ({', '.join(own)}) is in the ledger, "
                f"which knows {', '.join(log.models)}; give a router fitted on these"
            )
        quality = np.array([[d.scores[model] for model in own] for d in decisions])
        cost = np.nan_to_num(self.router.mean_cost, nan=0.0)
        models = (*log.models, *(model for model in own if model not in log.models))
        columns = [models.index(model) for model in own]
        probability = np.zeros((len(log), len(models)))
        may = _eligible(log, models)[:, columns]
        probability[:, columns] = choice_probability(
            rule, np.where(may, quality, _WORST), np.where(may, cost, _DEAREST)
        )
        estimates = np.full(probability.shape, np.nan)
        estimates[:, columns] = np.clip(quality, 0.0, 1.0)
        name = f"{self._called} under {rule}"
        return Target(name=name, models=models, probability=probability, quality=estimates)

    @property
    def _called(self) -> str:
        return self.name or self.router.router.name

    def _prompts(self, log: Log) -> Any:
        if log.texts is not None and all(text is not None for text in log.texts):
            return list(log.texts)
        if log.features is not None:
            return log.features
        texts = [None] * len(log) if log.texts is None else log.texts
        raise InputError(
            f"{sum(text is None for text in texts)} of {len(log)} judged calls were kept without "
            "their text, and some without their embedding, so a router cannot say what it would "
            "have chosen; set ledger.keep: [text] or [features], and leave out what came before "
            "(--since)"
        )


def _eligible(log: Log, models: Sequence[str]) -> Bools:
    """Return who might answer, shape (N, len(models)); the models are those of the log first."""
    found = np.ones((len(log), len(models)), dtype=bool)
    if log.eligible is not None:
        found[:, : len(log.models)] = log.eligible
    return found


def _among_eligible(probability_NK: Float64, log: Log) -> Float64:
    """Share out among the eligible what the others would have had; where none has any, leave it."""
    open_NK = np.where(_eligible(log, log.models), probability_NK, 0.0)
    total_N = open_NK.sum(axis=1, keepdims=True)
    return np.where(total_N > 0, open_NK / np.where(total_N > 0, total_N, 1.0), probability_NK)


def choice_probability(rule: DecisionRule, quality_NK: Float64, cost_NK: Float64) -> Float64:
    """Return the probability with which a rule chooses each model, shape (N, K)."""
    cost = np.broadcast_to(cost_NK, quality_NK.shape)
    shares: Sequence[tuple[float, Any]]
    if isinstance(rule, BudgetRule):
        low, high = rule.sides(quality_NK, cost)
        shares = ((1 - rule.share, low), (rule.share, high))
    else:
        shares = ((1.0, rule.choose(quality_NK, cost)),)
    found = np.zeros(quality_NK.shape)
    rows = np.arange(len(found))
    for share, choice in shares:
        found[rows, choice] += share
    return found


def _check_prices(rule: DecisionRule, price: Float64, known: Any, models: Sequence[str]) -> None:
    if isinstance(rule, Argmax):
        return
    unknown = (known & ~np.isfinite(price)).any(axis=0)
    if unknown.any():
        name = models[int(np.flatnonzero(unknown)[0])]
        raise InputError(
            f"decision rule {str(rule)!r} weighs costs, but the ledger does not know that of "
            f"{name!r} for every call; give prices in the pool, or use argmax"
        )


def _finite(values: Float64, in_place_of_infinity: float) -> Float64:
    return np.where(np.isfinite(values), values, in_place_of_infinity)
