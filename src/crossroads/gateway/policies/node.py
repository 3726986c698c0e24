"""What the parts of a compiled policy share: the question, and how it is answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from crossroads.core.decision import Decision
from crossroads.gateway.call import Call
from crossroads.gateway.contracts import Check, Choice
from crossroads.gateway.policies.eligibility import Eligibility, IneligibleError
from crossroads.gateway.policies.settings import Common


@dataclass(slots=True)
class Ask:
    """One question to the policies.

    Attributes
    ----------
    call : the request
    allowed : models that may answer it
    is_all : whether that is every model, so that prepared choices fit
    cost_price : quality per USD asked for on top of the policy's own price
    rule : decision rule of the request, for a learned policy; "" for its own
    text : what is decided by
    key : what random splits keep together
    is_peek : asked for the probabilities only: nothing is to be remembered or started
    chance : what chance is drawn from in place of the call's id; "" for the id
    """

    call: Call
    allowed: frozenset[str]
    is_all: bool
    cost_price: float
    rule: str
    text: str
    key: str
    is_peek: bool = False
    chance: str = ""

    @property
    def draws_by(self) -> str:
        """Key of all draws of this call: who asks again with it draws the same."""
        return self.chance or self.call.id


class Node(Protocol):
    """A model or a policy, ready to choose.

    ``choose`` returns a model of ``ask.allowed`` or raises ``IneligibleError``; ``candidates``
    are all models it may ever choose.
    """

    name: str
    kind: str
    version: str
    candidates: frozenset[str]

    async def choose(self, ask: Ask) -> Choice: ...

    def describe(self) -> dict[str, Any]:
        """Return what it is, as plain data."""
        ...

    def health(self) -> dict[str, Any] | None:
        """Return what is wrong or worth watching, as plain data; None for nothing to say."""
        ...

    def close(self) -> None: ...


class Manner:
    """How the choices of one policy are presented: its name, version, fallbacks and hedging.

    Parameters
    ----------
    name, version : of the policy; the version changes with whatever changes its choices
    basis : part of the version without the models' cards and fallbacks: what estimates stand on
    settings : its fallbacks and hedging; None for a model that is named
    chains : model to the models asked when it fails, for policies that name none
    eligibility : names the constraint where no model is left
    """

    def __init__(
        self,
        name: str,
        version: str,
        settings: Common | None,
        chains: Mapping[str, tuple[str, ...]],
        eligibility: Eligibility,
        *,
        basis: str = "",
    ) -> None:
        self.name = name
        self.basis = basis
        self.version = version
        self.own = settings.fallbacks if settings is not None else ()
        wait_ms = settings.hedge_after_ms if settings is not None else None
        self.hedge_after = None if wait_ms is None else wait_ms / 1000
        self.chains = chains
        self.eligibility = eligibility

    def choice(self, model: str, *, allowed: frozenset[str], **facts: Any) -> Choice:
        """Return a choice of one model, its fallbacks filtered.

        The policy's own fallbacks go before those of the model, and these before those in
        ``facts``.
        """
        chain = self.declared(model) or facts.pop("fallbacks", ())
        facts.pop("fallbacks", None)
        return Choice(
            model=model,
            fallbacks=filtered(chain, model, allowed) if chain else (),
            policy=self.name,
            version=self.version,
            hedge_after=self.hedge_after,
            **facts,
        )

    def declared(self, model: str) -> tuple[str, ...]:
        """Return the models to be asked when one fails, as the user declared them; () for none."""
        return self.own or self.chains.get(model, ())

    def adopt(
        self,
        inner: Choice,
        ask: Ask,
        *,
        reason: str | None = None,
        probabilities: Mapping[str, float] | None = None,
        labels: dict[str, str] | None = None,
        decision: Decision | None = None,
        costs: Mapping[str, float] | None = None,
        check: Check | None = None,
        escalate_to: tuple[str, ...] = (),
    ) -> Choice:
        """Return the choice of a policy this one refers to, as this one's.

        ``probabilities`` are those of the models where this policy draws too. ``labels`` are taken
        as they are, the inner ones added. ``decision`` and ``costs`` stand in where the inner
        choice has none.
        """
        told = {} if labels is None else labels
        for label, value in inner.labels.items():
            told.setdefault(label, value)
        if inner.policy not in ("direct", self.name):
            told.setdefault("via", inner.policy)
        if probabilities is None:
            probabilities, propensity = inner.probabilities, inner.propensity
        else:
            propensity = probabilities[inner.model]
        fallbacks = filtered(self.own, inner.model, ask.allowed) if self.own else inner.fallbacks
        return Choice(
            model=inner.model,
            fallbacks=fallbacks,
            policy=self.name,
            version=self.version,
            reason=inner.reason if reason is None else reason,
            decision=inner.decision or decision,
            propensity=propensity,
            probabilities=probabilities,
            costs=inner.costs or costs or {},
            is_explored=inner.is_explored,
            features=inner.features,
            check=check or inner.check,
            escalate_to=escalate_to or inner.escalate_to,
            hedge_after=inner.hedge_after if self.hedge_after is None else self.hedge_after,
            labels=told,
        )

    def refusal(self, ask: Ask, candidates: frozenset[str]) -> IneligibleError:
        """Return the error where none of the candidates may answer."""
        return self.eligibility.refusal(ask.call, candidates, self.name)


def filtered(chain: Iterable[str], model: str, allowed: frozenset[str]) -> tuple[str, ...]:
    """Return the models of a chain that may answer, without ``model`` and repetitions."""
    return tuple(name for name in dict.fromkeys(chain) if name != model and name in allowed)


class ModelNode:
    """A model as the target of a policy, or named by a request."""

    kind = "model"

    def __init__(self, name: str, manner: Manner) -> None:
        self.name = name
        self.version = manner.version
        self.candidates = frozenset((name,))
        self._manner = manner
        self._choice = manner.choice(name, allowed=manner.eligibility.all)

    async def choose(self, ask: Ask) -> Choice:
        if ask.is_all:
            return self._choice
        if self.name not in ask.allowed:
            raise self._manner.refusal(ask, self.candidates)
        return self._manner.choice(self.name, allowed=ask.allowed)

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "models": [self.name]}

    def health(self) -> dict[str, Any] | None:
        return None

    def close(self) -> None:
        return None
