"""Policies that divide traffic: a weighted split, a canary, a shadow.

A side is drawn by weighted rendezvous hashing of the session (or the call), so every worker and
every replay draws the same, and a target that comes or goes moves only its own share.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from crossroads.core.decision import Decision
from crossroads.gateway.contracts import Choice
from crossroads.gateway.errors import ApiError
from crossroads.gateway.policies.draws import rendezvous, salt
from crossroads.gateway.policies.node import Ask, Manner, ModelNode, Node

_MOST_SHADOWS = 64  # decisions of a shadow under way; more are skipped


class SplitNode:
    """Divides calls among targets in proportion to weights; eligible targets share the whole.

    Parameters
    ----------
    kind : ``split`` or ``canary``
    targets : models or policies with their weights
    by_session : whether a session keeps its side
    seed : of the draws
    """

    def __init__(
        self,
        kind: str,
        targets: Sequence[tuple[Node, float]],
        manner: Manner,
        *,
        by_session: bool,
        seed: int,
    ) -> None:
        self.kind = kind
        self.name = manner.name
        self.version = manner.version
        self._manner = manner
        self._nodes = [node for node, weight in targets if weight > 0]
        self._weights = [weight for _, weight in targets if weight > 0]
        self._salts = [salt(seed, f"{self.name}/{node.name}") for node in self._nodes]
        self._by_session = by_session
        self.candidates = frozenset[str]().union(*(node.candidates for node in self._nodes))
        self._shares = _normalised(self._weights)
        self._is_of_models = all(isinstance(node, ModelNode) for node in self._nodes)
        # Of models alone every choice can be made beforehand.
        self._prepared = [
            self._of_model(index, self._shares, manner.eligibility.all)
            for index in range(len(self._nodes) if self._is_of_models else 0)
        ]

    async def choose(self, ask: Ask) -> Choice:
        key = (ask.key or ask.draws_by) if self._by_session else ask.draws_by
        if ask.is_all:
            weights, shares = self._weights, self._shares
        else:
            weights = self._open_weights(ask.allowed)
            if not any(weights):
                raise self._manner.refusal(ask, self.candidates)
            shares = _normalised(weights)
        if self._is_of_models:
            index = rendezvous(self._salts, weights, key)
            if ask.is_all:
                return self._prepared[index]
            return self._of_model(index, shares, ask.allowed)
        return await self._of_policy(ask, key, list(weights))

    async def _of_policy(self, ask: Ask, key: str, weights: list[float]) -> Choice:
        """Return the choice of the side that is drawn among those that can answer."""
        while True:
            index = rendezvous(self._salts, weights, key)
            try:
                inner = await self._nodes[index].choose(ask)
                break
            except ApiError:
                weights[index] = 0.0
                if not any(weights):
                    raise
        sides = await self._sides(ask, index, inner, weights)
        shares = _normalised([weights[place] for place in sides])
        probabilities: dict[str, float] = {}
        for choice, share in zip(sides.values(), shares, strict=True):
            for model, probability in (choice.probabilities or {choice.model: 1.0}).items():
                probabilities[model] = probabilities.get(model, 0.0) + share * probability
        drawn = dict(zip(sides, shares, strict=True))[index]
        learned = next((c for c in sides.values() if c.decision is not None), None)
        reason = f"{self._reason(index, drawn)}; {inner.reason}"
        return self._manner.adopt(
            inner,
            ask,
            reason=reason,
            probabilities=probabilities,
            labels=self._labels(index),
            decision=None
            if learned is None
            else _of_other(learned, inner.model, reason, probabilities),
            costs=None if learned is None else learned.costs,
        )

    def _open_weights(self, allowed: frozenset[str]) -> list[float]:
        return [
            0.0 if node.candidates.isdisjoint(allowed) else weight
            for node, weight in zip(self._nodes, self._weights, strict=True)
        ]

    async def _sides(
        self, ask: Ask, index: int, inner: Choice, weights: Sequence[float]
    ) -> dict[int, Choice]:
        """Return what every side that can answer would choose, by its place.

        Two sides may choose the same model: what counts for an estimate from the ledger is the
        probability of the model, so the other sides are asked too. One that cannot answer would
        have been drawn in vain, and its share falls to the others.
        """
        found: dict[int, Choice] = {}
        peek = replace(ask, is_peek=True)
        for place, weight in enumerate(weights):
            if place == index:
                found[place] = inner
            elif weight > 0:
                with suppress(ApiError):
                    found[place] = await self._nodes[place].choose(peek)
        return found

    def _of_model(self, index: int, shares: Sequence[float], allowed: frozenset[str]) -> Choice:
        return self._manner.choice(
            self._nodes[index].name,
            allowed=allowed,
            reason=self._reason(index, shares[index]),
            propensity=shares[index],
            probabilities={
                node.name: share
                for node, share in zip(self._nodes, shares, strict=True)
                if share > 0
            },
            labels=self._labels(index),
        )

    def _reason(self, index: int, share: float) -> str:
        return f"{self._nodes[index].name} has {100 * share:.3g} % of the calls of {self.name}"

    def _labels(self, index: int) -> dict[str, str]:
        if self.kind == "canary":
            return {"canary": "candidate" if index == 1 else "base"}
        return {}

    def describe(self) -> dict[str, Any]:
        names = [node.name for node in self._nodes]
        weights = dict(zip(names, self._weights, strict=True))
        return {"kind": self.kind, "models": sorted(self.candidates), "weights": weights}

    def health(self) -> dict[str, Any] | None:
        return None

    def close(self) -> None:
        return None


def _of_other(
    learned: Choice, model: str, reason: str, probabilities: Mapping[str, float]
) -> Decision:
    """Return the estimates of a side that was not drawn, as those of the model that answers.

    Without them the ledger would know the estimates of some models' calls only, and what is
    estimated from such calls is wrong. A model that the router does not know has quality 0.
    """
    decision = learned.decision
    assert decision is not None
    return replace(
        decision,
        chosen=(model,),
        reason=reason,
        propensity=probabilities[model],
        predicted_quality=min(max(decision.scores.get(model, 0.0), 0.0), 1.0),
        predicted_cost_usd=learned.costs.get(model),
        confidence=0.0,
        details={},
    )


def _normalised(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [weight / total for weight in weights]


class ShadowNode:
    """Lets a base policy decide, and a candidate beside it, unheard.

    The candidate decides in a task of its own once the base has decided, and notes its choice in
    the labels of the base's. ``shadowed`` counts the pairs of choices.
    """

    kind = "shadow"

    def __init__(self, base: Node, candidate: Node, manner: Manner) -> None:
        self.name = manner.name
        self.version = manner.version
        self._manner = manner
        self._base = base
        self._candidate = candidate
        self.candidates = base.candidates
        self.shadowed: Counter[tuple[str, str]] = Counter()
        self._running: set[asyncio.Task[None]] = set()
        self.num_skipped = self.num_failed = 0

    async def choose(self, ask: Ask) -> Choice:
        inner = await self._base.choose(ask)
        if ask.is_peek:
            return self._manner.adopt(inner, ask)
        # The record of a call is written at its end: what the shadow notes until then is in it.
        noted = {"shadow-policy": self._candidate.name}
        choice = self._manner.adopt(inner, ask, labels=noted)
        if len(self._running) >= _MOST_SHADOWS:
            self.num_skipped += 1
            noted["shadow"] = "skipped"
            return choice
        task = asyncio.get_running_loop().create_task(self._shadow(ask, inner.model, noted))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return choice

    async def _shadow(self, ask: Ask, model: str, labels: dict[str, str]) -> None:
        try:
            other = await self._candidate.choose(ask)
        except ApiError:
            self.num_failed += 1
            labels["shadow"] = "failed"
            return
        labels["shadow"] = other.model
        labels["shadow-propensity"] = f"{other.propensity:.6g}"
        if len(self.shadowed) < 10_000 or (model, other.model) in self.shadowed:
            self.shadowed[model, other.model] += 1

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "models": sorted(self.candidates),
            "base": self._base.name,
            "candidate": self._candidate.name,
        }

    def health(self) -> dict[str, Any] | None:
        agreed = sum(n for (one, other), n in self.shadowed.items() if one == other)
        return {
            "state": "ok",
            "shadowed": sum(self.shadowed.values()),
            "agreed": agreed,
            "skipped": self.num_skipped,
            "failed": self.num_failed,
            "pairs": [
                {"base": one, "candidate": other, "calls": n}
                for (one, other), n in self.shadowed.most_common(50)
            ],
        }

    def close(self) -> None:
        for task in self._running:
            task.cancel()
