"""Cascade: a cheap model answers, and a dearer one where the answer does not pass.

With the check ``sdm`` nothing is generated in vain: the verifier of a router artefact says before
any answer whether the router's choice will be right, at the level of accuracy it was calibrated
for. What it accepts is answered by that choice, what it escalates by the second step, and where it
abstains (a prompt unlike the calibrated ones) by the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crossroads.gateway.contracts import Check, Choice
from crossroads.gateway.policies.node import Ask, Manner, ModelNode, Node, filtered


class CascadeNode:
    """Steps from cheap to dear, with a check of the answer.

    Parameters
    ----------
    first : model or policy of the first step
    later : models of the others
    check : of the answer; None for ``sdm``, which judges the decision of ``first``
    check_name : kind of the check
    """

    kind = "cascade"

    def __init__(
        self,
        first: Node,
        later: Sequence[str],
        manner: Manner,
        *,
        check: Check | None,
        check_name: str,
    ) -> None:
        self.name = manner.name
        self.version = manner.version
        self._first = first
        self._later = tuple(later)
        self._manner = manner
        self._check = check
        self._check_name = check_name
        self.candidates = first.candidates | frozenset(later)
        self._prepared = (
            self._checked_model(first.name, manner.eligibility.all)
            if check is not None and isinstance(first, ModelNode)
            else None
        )

    async def choose(self, ask: Ask) -> Choice:
        if self._prepared is not None and ask.is_all:
            return self._prepared
        if self._first.candidates.isdisjoint(ask.allowed):
            return self._later_step(ask, 0, "the first step may not answer this request", {})
        if self._check is None:
            return await self._verified(ask)
        if isinstance(self._first, ModelNode):
            return self._checked_model(self._first.name, ask.allowed)
        inner = await self._first.choose(ask)
        return self._checked(inner, ask)

    def _checked_model(self, model: str, allowed: frozenset[str]) -> Choice:
        later = filtered(self._later, model, allowed)
        return self._manner.choice(
            model,
            allowed=allowed,
            fallbacks=later,
            reason=self._reason(model, later),
            check=self._check if later else None,
            escalate_to=later,
        )

    def _checked(self, inner: Choice, ask: Ask) -> Choice:
        """Return the choice of the policy of the first step, its answer to be checked."""
        later = filtered(self._later, inner.model, ask.allowed)
        return self._manner.adopt(
            inner,
            ask,
            reason=f"{inner.reason}; {self._reason(inner.model, later)}",
            check=self._check if later else None,
            escalate_to=later,
        )

    def _reason(self, model: str, later: Sequence[str]) -> str:
        if not later:
            return f"{model} is the only step of the cascade that may answer"
        return f"{model} answers first, {' then '.join(later)} where {self._check_name} refuses"

    async def _verified(self, ask: Ask) -> Choice:
        inner = await self._first.choose(ask)
        found: dict[str, Any] = {}
        if inner.decision is not None:
            found = inner.decision.details.get("verification") or {}
        answer = found.get("answer")
        level = found.get("level")
        labels = {"sdm": str(answer or "none")}
        if level is not None:
            labels["coverage-level"] = f"{level:g}"
        said = f"at the level {level:g} of accuracy: " if level is not None else ""
        why = found.get("reason") or "the decision was not verified"
        if answer == "accept":
            return self._manner.adopt(
                inner,
                ask,
                reason=f"{inner.model} accepted {said}{why}",
                labels=labels,
            )
        step = len(self._later) - 1 if answer == "abstain" else 0
        verb = "abstained" if answer == "abstain" else "escalated"
        reason = f"{verb} from {inner.model} {said}{why}"
        if filtered(self._later, "", ask.allowed):
            return self._later_step(ask, step, reason, labels, inner)
        told = f"{reason}; no later step may answer"
        return self._manner.adopt(inner, ask, reason=told, labels=labels)

    def _later_step(
        self,
        ask: Ask,
        step: int,
        reason: str,
        labels: dict[str, str],
        inner: Choice | None = None,
    ) -> Choice:
        """Return the first model from a step on that may answer, else the last before it."""
        left = filtered(self._later[step:], "", ask.allowed)
        before = filtered(reversed(self._later[:step]), "", ask.allowed)
        order = left + before
        if not order:
            raise self._manner.refusal(ask, self.candidates)
        later = filtered(self._later[self._later.index(order[0]) + 1 :], "", ask.allowed)
        is_checked = self._check is not None and bool(later)
        return self._manner.choice(
            order[0],
            allowed=ask.allowed,
            fallbacks=order[1:],
            reason=f"{reason}; {order[0]} answers",
            decision=inner.decision if inner is not None else None,
            features=inner.features if inner is not None else None,
            costs=inner.costs if inner is not None else {},
            check=self._check if is_checked else None,
            escalate_to=later if is_checked else (),
            labels=labels,
        )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "models": sorted(self.candidates),
            "steps": [self._first.name, *self._later],
            "check": self._check_name,
        }

    def health(self) -> dict[str, Any] | None:
        return None

    def close(self) -> None:
        return None
