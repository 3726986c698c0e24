"""Policies that divide traffic: a weighted split, a canary, a shadow.

A side is drawn by weighted rendezvous hashing of the session (or the call), so every worker and
every replay draws the same, and a target that comes or goes moves only its own share.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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
        key = (ask.key or ask.call.id) if self._by_session else ask.call.id
        if ask.is_all:
            weights, shares = self._weights, self._shares
        else:
            weights = self._open_weights(ask.allowed)
            if not any(weights):
                raise self._manner.refusal(ask, self.candidates)
            shares = _normalised(weights)
        index = rendezvous(self._salts, weights, key)
        if self._is_of_models:
            if ask.is_all:
                return self._prepared[index]
            return self._of_model(index, shares, ask.allowed)
        inner = await self._nodes[index].choose(ask)
        return self._manner.adopt(
            inner,
            ask,
            reason=f"{self._reason(index, shares)}; {inner.reason}",
            probabilities=await self._mixture(ask, index, inner, shares),
            labels=self._labels(index),
        )

    def _open_weights(self, allowed: frozenset[str]) -> list[float]:
        return [
            0.0 if node.candidates.isdisjoint(allowed) else weight
            for node, weight in zip(self._nodes, self._weights, strict=True)
        ]

    async def _mixture(
        self, ask: Ask, index: int, inner: Choice, shares: Sequence[float]
    ) -> dict[str, float]:
        """Return the probability of each model over all targets.

        Two targets may choose the same model: what counts for an estimate from the ledger is the
        probability of the model, so the other targets are asked too. One that cannot say is left
        out: the model answered would not have been its choice.
        """
        found: dict[str, float] = {}
        peek = replace(ask, is_peek=True)
        for place, share in enumerate(shares):
            if share == 0:
                continue
            choice = inner
            if place != index:
                try:
                    choice = await self._nodes[place].choose(peek)
                except ApiError:
                    continue
            own = choice.probabilities or {choice.model: 1.0}
            for model, probability in own.items():
                found[model] = found.get(model, 0.0) + share * probability
        return found

    def _of_model(self, index: int, shares: Sequence[float], allowed: frozenset[str]) -> Choice:
        return self._manner.choice(
            self._nodes[index].name,
            allowed=allowed,
            reason=self._reason(index, shares),
            propensity=shares[index],
            probabilities={
                node.name: share
                for node, share in zip(self._nodes, shares, strict=True)
                if share > 0
            },
            labels=self._labels(index),
        )

    def _reason(self, index: int, shares: Sequence[float]) -> str:
        name, share = self._nodes[index].name, 100 * shares[index]
        return f"{name} has {share:.3g} % of the calls of {self.name}"

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
