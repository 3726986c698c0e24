"""A fitted router as a policy: estimates, eligibility, objective, exploration.

The two sides of a budget are drawn call by call. ``FittedRouter.decide`` draws by the prompt, which
is right over prompts that are all different; of traffic that repeats itself, one prompt asked again
and again would spend all on one side, and its recorded probability would be that of no draw.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from crossroads import __version__
from crossroads.core.decision import Decision
from crossroads.core.errors import InputError, UsageError
from crossroads.gateway.contracts import Choice
from crossroads.gateway.errors import ApiError
from crossroads.gateway.policies.draws import draw, pick, salt
from crossroads.gateway.policies.drift import Drift
from crossroads.gateway.policies.eligibility import IneligibleError
from crossroads.gateway.policies.estimates import (
    Estimate,
    Estimates,
    RouterFailedError,
    within,
)
from crossroads.gateway.policies.explore import Explorer
from crossroads.gateway.policies.frontier import Frontier
from crossroads.gateway.policies.node import Ask, Manner, Node, filtered
from crossroads.gateway.policies.objective import (
    PricedMaxCost,
    by_cost,
    can_weigh_costs,
    mixture,
    priced,
    ranked,
    resolve_rule,
)
from crossroads.gateway.policies.settings import LearnedSettings
from crossroads.prompts.decide import DecisionRule, MinQuality, Tradeoff
from crossroads.prompts.explain import Numbers, lead, reason
from crossroads.prompts.route_verification import reason_of

_MOST_KEPT = 16  # decisions remembered of one prompt: rules, sets of models, prices
_MOST_RULES = 256  # of requests, remembered
_MOST_TERMS = 256  # remembered
_NONE: dict[str, Any] = {}  # of most choices, and never changed: one is enough
BUDGET, FAILED, NO_TEXT = "route-budget", "router-failed", "no-text"


@dataclass(slots=True, eq=False)
class _Terms:
    """What decisions are made on, whatever the prompt: a rule, a price and a set of models.

    Attributes
    ----------
    rule : with the price in it
    spelled : the rule as text, without the price where no text can hold both
    price : on cost, of the caller
    names : of the E eligible models
    columns : their places among the router's (E,)
    cost : of those, USD (E,)
    thrifty : of those, from cheap to dear (E,)
    is_pure : whether neither price nor constraint changed what the router alone would choose from
    labels : of every choice on these terms
    """

    rule: DecisionRule
    spelled: str
    price: float
    names: tuple[str, ...]
    columns: tuple[int, ...]
    cost: Numbers
    thrifty: list[int]
    is_pure: bool
    labels: dict[str, str]


@dataclass(slots=True)
class _Plan:
    """What one policy makes of one prompt, on some terms.

    Attributes
    ----------
    terms : the terms
    quality : of the E eligible models
    own : columns among them that the rule itself takes: two sides of a budget, else one
    best : the likelier of these
    probability : of each model, where the choice is random
    choices : made so far, by column among E
    """

    terms: _Terms
    quality: Numbers
    own: tuple[int, ...]
    best: int
    probability: list[float] | None
    choices: dict[int, Choice] = field(default_factory=dict)


class LearnedNode:
    """Decides by the estimates of a fitted router.

    Parameters
    ----------
    settings : of the policy
    estimates : of its router, shared with others
    manner : how choices are presented
    fallback : decides where the router cannot
    """

    kind = "learned"

    def __init__(
        self,
        settings: LearnedSettings,
        estimates: Estimates,
        manner: Manner,
        fallback: Node | None = None,
    ) -> None:
        fitted = estimates.fitted
        self.name = manner.name
        self.version = manner.version
        self.basis = manner.basis
        self.estimates = estimates
        self.fitted = fitted
        self.settings = settings
        self.models = tuple(m for m in fitted.models if not settings.models or m in settings.models)
        self.candidates = frozenset(self.models)
        self.fallback = fallback
        self._manner = manner
        self._budget_s = None if settings.budget_us is None else settings.budget_us / 1e6
        objective = settings.objective
        self.rule = resolve_rule(fitted, None if objective is None else objective.text())
        estimates.keep_features |= settings.keep_features
        self._num_fallbacks = 0 if manner.own else settings.num_fallbacks
        self._rules: dict[str, DecisionRule] = {}
        self._weighs = can_weigh_costs(fitted)
        self._terms: dict[Any, _Terms] = {}
        self._mean_cost: list[float] = fitted.mean_cost.tolist()
        # Where costs are unknown only argmax decides, which looks at none.
        self._cost = [usd if math.isfinite(usd) else 0.0 for usd in self._mean_cost]
        known = zip(fitted.models, self._mean_cost, strict=True)
        self._known_costs = {model: usd for model, usd in known if math.isfinite(usd)}
        self._columns = tuple(
            k for k, model in enumerate(fitted.models) if model in self.candidates
        )
        self._router = fitted.router.name
        self._router_version = f"{__version__}/{fitted.router.version}"
        self._salt = salt(settings.seed, self.name)
        self._explorer = (
            None
            if settings.explore is None
            else Explorer(settings.explore, len(fitted.models), settings.seed)
        )
        self._frontier = Frontier(fitted, self._columns)
        estimates.watch(self._frontier.seen)
        self._drift = None if settings.drift is None else Drift(fitted, settings.drift)
        if self._drift is not None:
            estimates.watch(self._drift.seen)
        self.num_degraded = {BUDGET: 0, FAILED: 0, NO_TEXT: 0}
        self.num_late = 0
        self._failing = ""

    async def choose(self, ask: Ask) -> Choice:
        text = ask.text
        if not text or text.isspace():
            return await self._without_text(ask)
        if ask.rule:
            self._rule_of(ask.rule)  # a wrong one is refused before anything is estimated
        started = time.perf_counter()
        try:
            asked = self.estimates.ask(text)
            if isinstance(asked, Estimate):
                found: Estimate | None = asked
            else:
                found = await within(asked, self._budget_s)
        except RouterFailedError as error:
            self._failing = str(error)
            return await self._degraded(ask, FAILED, error)
        if found is None:
            return await self._degraded(ask, BUDGET)
        if self._budget_s is not None and time.perf_counter() - started > self._budget_s:
            self.num_late += 1  # it was made on the event loop, which nothing interrupts
        self._failing = ""
        return self.decide(ask, found)

    def decide(self, ask: Ask, found: Estimate) -> Choice:
        """Return the choice for a prompt whose estimate is known. Raises ApiError."""
        price = 0.0
        if (
            ask.cost_price > 0
            and self._weighs
            and not isinstance(self._rule_of(ask.rule), MinQuality)
        ):
            price = float(f"{ask.cost_price:.2e}")  # coarse enough for decisions to be remembered
        terms = self._terms_of(ask, found.is_open, price)
        remembered = found.kept
        kept = None if remembered is None else remembered.get(terms)
        if kept.__class__ is Choice:
            return kept
        plan: _Plan | None = kept
        if plan is None:
            plan = self._plan(found, terms)
            # Where nothing is left to chance the choice stands.
            choice = self._choice(ask, found, plan, plan.best) if plan.probability is None else None
            if remembered is not None:
                if len(remembered) >= _MOST_KEPT:
                    remembered.clear()
                remembered[terms] = choice or plan
            if choice is not None:
                return choice
        assert plan.probability is not None
        column = pick(plan.probability, draw(self._salt, ask.draws_by))
        drawn = plan.choices.get(column)
        if drawn is None:
            drawn = plan.choices[column] = self._choice(ask, found, plan, column)
        return drawn

    def _terms_of(self, ask: Ask, is_open: Sequence[bool] | None, price: float) -> _Terms:
        """Return the terms of a request. Raises ApiError where no model is left."""
        allowed = None if ask.is_all else ask.allowed
        key = (ask.rule, allowed, price, None if is_open is None else tuple(is_open))
        terms = self._terms.get(key)
        if terms is None:
            if len(self._terms) >= _MOST_TERMS:
                self._terms.clear()
            terms = self._terms[key] = self._new_terms(ask, is_open, price)
        return terms

    def _new_terms(self, ask: Ask, is_open: Sequence[bool] | None, price: float) -> _Terms:
        known = self.fitted.models
        columns = tuple(
            k
            for k in self._columns
            if (ask.is_all or known[k] in ask.allowed) and (is_open is None or is_open[k])
        )
        if not columns:
            raise self._none_left(ask)
        rule = priced(self._rule_of(ask.rule), price)
        cost = [self._cost[k] for k in columns]
        labels = {}
        if len(columns) < len(self.models):
            labels["eligible"] = f"{len(columns)} of {len(self.models)}"
        if price:
            labels["cost-price"] = repr(price)  # to decide again with
        # What the router itself rules out is no constraint.
        num_open = len(known) if is_open is None else sum(is_open)
        return _Terms(
            rule=rule,
            spelled=str(rule.rule if isinstance(rule, PricedMaxCost) else rule),
            price=price,
            names=tuple(known[k] for k in columns),
            columns=columns,
            cost=cost,
            thrifty=by_cost(cost),
            is_pure=price == 0 and len(columns) == num_open,
            labels=labels,
        )

    def _plan(self, found: Estimate, terms: _Terms) -> _Plan:
        rule, columns, quality = terms.rule, terms.columns, found.quality
        if len(columns) < len(quality):
            quality = [quality[k] for k in columns]
        sides = mixture(rule, quality, terms.cost)
        own = tuple(column for column, _ in sides)
        best = max(sides, key=lambda side: side[1])[0]
        probability: list[float] | None = None
        if self._explorer is not None:
            probability = self._explorer.probabilities(rule, quality, terms.cost, sides, columns)
        elif len(sides) > 1:
            probability = [0.0] * len(columns)
            for column, share in sides:
                probability[column] += share
        return _Plan(terms, quality, own, best, probability)

    def _choice(self, ask: Ask, found: Estimate, plan: _Plan, column: int) -> Choice:
        terms, probability = plan.terms, plan.probability
        names, model = terms.names, terms.names[column]
        propensity = 1.0 if probability is None else probability[column]
        explored = column not in plan.own
        if explored:
            told = (
                f"{model} was drawn to explore, with probability {propensity:.3f}; "
                f"{names[plan.best]} is the best known"
            )
        else:
            told = reason(terms.rule, names, plan.quality, terms.cost, column)
        return Choice(
            model=model,
            fallbacks=self._fallbacks(plan, column, ask.allowed),
            policy=self.name,
            version=self.version,
            reason=told,
            decision=self._decision(found, plan, column, told, propensity),
            propensity=propensity,
            probabilities=_NONE
            if probability is None
            else dict(zip(names, probability, strict=True)),
            costs=self._known_costs,
            is_explored=explored,
            features=found.features if self.settings.keep_features else None,
            hedge_after=self._manner.hedge_after,
            labels=terms.labels,
        )

    def _fallbacks(self, plan: _Plan, column: int, allowed: frozenset[str]) -> tuple[str, ...]:
        """Return the models asked in order when the chosen one fails: as declared, or next best."""
        terms, most = plan.terms, self._num_fallbacks
        declared = self._manner.declared(terms.names[column])
        if declared:
            return filtered(declared, terms.names[column], allowed)
        if not most:
            return ()
        order = ranked(terms.rule, plan.quality, terms.cost, terms.thrifty)[: most + 1]
        return tuple([terms.names[c] for c in order if c != column][:most])

    def _decision(
        self, found: Estimate, plan: _Plan, column: int, told: str, propensity: float
    ) -> Decision:
        terms, quality = plan.terms, plan.quality
        cost = self._mean_cost[terms.columns[column]]
        return Decision(
            chosen=(terms.names[column],),
            scores=dict(zip(terms.names, quality, strict=True)),
            rule=terms.spelled,
            reason=told,
            propensity=propensity,
            predicted_quality=min(max(quality[column], 0.0), 1.0),
            predicted_cost_usd=cost if math.isfinite(cost) else None,
            confidence=lead(terms.rule, quality, terms.cost, column),
            seconds=found.seconds,
            router=self._router,
            version=self._router_version,
            seed=self.settings.seed,
            details=self._details(found, plan, column, terms.names[column]),
        )

    def _details(self, found: Estimate, plan: _Plan, column: int, model: str) -> dict[str, Any]:
        """Return the verifier's answer, valid only for what the router alone would have chosen."""
        verifier, answer = self.fitted.verifier, found.verification
        if verifier is None or answer is None:
            return _NONE
        terms = plan.terms
        # Exploration also shifts how often each side of a budget is taken.
        is_own = column in plan.own and (self._explorer is None or len(plan.own) == 1)
        if not (terms.is_pure and is_own and terms.spelled == verifier.rule):
            why = f"calibrated for choices under rule {verifier.rule} among all models"
            return {"verification": {"answer": None, "reason": why, "level": answer.level}}
        other = None if answer.accepted or model == verifier.fallback else verifier.fallback
        told = reason_of(answer, is_empty=verifier.verifier.is_empty)
        return {"verification": {**answer.to_dict(), "reason": told, "escalate_to": other}}

    def _rule_of(self, text: str) -> DecisionRule:
        if not text:
            return self.rule
        rule = self._rules.get(text)
        if rule is None:
            try:
                rule = resolve_rule(self.fitted, text)
            except (UsageError, InputError) as error:  # such as a budget below the cheapest model
                raise ApiError(str(error), code="invalid_rule", param="model") from error
            if len(self._rules) >= _MOST_RULES:
                self._rules.clear()
            self._rules[text] = rule
        return rule

    async def _without_text(self, ask: Ask) -> Choice:
        if self.fallback is not None:
            return await self._degraded(ask, NO_TEXT)
        raise ApiError(
            "No message holds text to route by; give the user's message a text, or name a "
            "model in place of 'auto'.",
            param="messages",
        )

    async def _degraded(self, ask: Ask, why: str, error: Exception | None = None) -> Choice:
        """Return the choice of the declared fallback, labelled; raise where there is none."""
        self.num_degraded[why] += 1
        if self.fallback is None:
            raise ApiError(
                f"The router of policy {self.name!r} failed ({error}); name a model, or declare "
                "a fallback for the policy.",
                status=503,
                code="router_failed",
            ) from error
        labels = {"degraded": why}
        try:
            inner = await self.fallback.choose(ask)
        except IneligibleError:
            left = [m for m in self.models if m in ask.allowed]
            if not left:
                raise self._none_left(ask) from None
            cheapest = min(left, key=lambda m: self._cost[self.fitted.models.index(m)])
            return self._manner.choice(
                cheapest,
                allowed=ask.allowed,
                reason=f"{_WHY[why]}, and the declared fallback {self.fallback.name} may not answer"
                f" this request: {cheapest} is the cheapest that may",
                labels=labels,
            )
        told = f"{_WHY[why]}: {inner.model} is the declared fallback"
        return self._manner.adopt(inner, ask, reason=told, labels=labels)

    def _none_left(self, ask: Ask) -> ApiError:
        left = self.candidates & ask.allowed
        if left:
            return IneligibleError(
                f"No model of {self.name!r} may answer this request: the router rules out "
                f"{', '.join(sorted(left))}.",
                code="ruled_out",
            )
        return self._manner.eligibility.refusal(ask.call, self.candidates, self.name)

    def adopt(self, before: LearnedNode) -> None:
        """Take over what the same policy learnt from traffic before a reload."""
        self.estimates.adopt(before.estimates)
        self._frontier.adopt(before._frontier)
        if self._drift is not None and before._drift is not None:
            self._drift.adopt(before._drift)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "models": list(self.models),
            "router": self.fitted.router.name,
            "objective": str(self.rule),
            "runs": "on the event loop" if self.estimates.is_inline else "in a thread",
            "frontier": self._frontier.describe(self.rule),
        }

    def preview(self, rule: str | float) -> dict[str, Any]:
        """Return the point another rule, or a price in quality per USD, would have reached.

        Raises ApiError 400 for a rule that cannot decide.
        """
        text = rule if isinstance(rule, str) else str(Tradeoff(rule))
        return self._frontier.point(self._rule_of(text))

    def health(self) -> dict[str, Any] | None:
        shared = self.estimates
        return {
            "state": "degraded" if self._failing else "ok",
            "problem": self._failing,
            "degraded": dict(self.num_degraded),
            "late": self.num_late,
            "failures": shared.num_failures,
            "hits": shared.num_hits,
            "misses": shared.num_misses,
            "batches": shared.num_batches,
            "seconds_per_prompt": shared.seconds,
            "drift": None if self._drift is None else self._drift.state(),
        }

    def close(self) -> None:
        self.estimates.close()


_WHY = {
    BUDGET: "the router took longer than its budget",
    FAILED: "the router failed",
    NO_TEXT: "no message holds text to route by",
}
