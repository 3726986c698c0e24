"""A session stays with its model for a time.

The wrapped policy decides once, by the first user message of the conversation, and whatever it
leaves to chance is drawn by the session. Chat requests carry the whole conversation, so workers and
replicas that share nothing decide alike for one session; the map of sessions is there for speed and
for policies that change meanwhile (a price on cost, drifting rules).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from crossroads.gateway.call import Call
from crossroads.gateway.contracts import Choice
from crossroads.gateway.policies.node import Ask, Manner, Node
from crossroads.prompts.experts.base import content_text

Sessions = OrderedDict[tuple[str, str], tuple[float, Choice]]
"""Client and session to the end of the session and its choice, the least recently used first."""


class StickyNode:
    """Remembers the choice of each session, the least recently used going first.

    Parameters
    ----------
    inner : decides at the start of a session
    manner : how choices are presented
    ttl_s : seconds since the last use for which a session is kept
    sessions : remembered at most
    clock : seconds, never going back
    """

    kind = "sticky"

    def __init__(
        self,
        inner: Node,
        manner: Manner,
        *,
        ttl_s: float,
        sessions: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = manner.name
        self.version = manner.version
        self.basis = manner.basis
        self.candidates = inner.candidates
        self._inner = inner
        self._manner = manner
        self._ttl_s = ttl_s
        self._size = sessions
        self._clock = clock
        self._kept: Sessions = OrderedDict()

    async def choose(self, ask: Ask) -> Choice:
        if not ask.key:
            return self._manner.adopt(await self._inner.choose(ask), ask)
        now = self._clock()
        # Two keys may call their sessions alike; one must not steer the other's.
        session = (ask.call.client.key_id, ask.key)
        known = self._kept.get(session)
        if known is not None and known[0] > now and known[1].model in ask.allowed:
            choice = known[1]
            if not ask.is_peek:
                self._kept[session] = (now + self._ttl_s, choice)
                self._kept.move_to_end(session)
            return choice if ask.is_all else self._filtered(choice, ask)
        text = first_user_text(ask.call) or ask.text
        opening = replace(ask, text=text, chance=f"{session[0]}:{session[1]}")
        choice = self._manner.adopt(await self._inner.choose(opening), ask)
        # What a router made of the first prompt says nothing about a later one.
        later = replace(choice, decision=None, costs={}, features=None)
        if text != ask.text:
            choice = later
        if ask.is_peek:
            return choice
        kept = replace(
            later,
            reason=f"the session stays with {choice.model}: {choice.reason}",
            labels={**choice.labels, "sticky": "kept"},
        )
        self._kept[session] = (now + self._ttl_s, kept)
        self._kept.move_to_end(session)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return choice

    def _filtered(self, choice: Choice, ask: Ask) -> Choice:
        fallbacks = tuple(name for name in choice.fallbacks if name in ask.allowed)
        escalate_to = tuple(name for name in choice.escalate_to if name in ask.allowed)
        return replace(choice, fallbacks=fallbacks, escalate_to=escalate_to)

    def adopt(self, before: StickyNode) -> None:
        """Take over the sessions of the same policy whose choice would be the same now.

        Those end whose model is gone or has other fallbacks, or whose answer is checked. On the
        event loop, in one turn: no session begins meanwhile.
        """
        there, chains = self._manner.eligibility.all, self._manner.chains
        was = before._manner.chains
        for session, (until, choice) in before._kept.items():
            # A check asks its judge as the policy before would: by what is no longer there.
            if choice.check is not None or chains.get(choice.model) != was.get(choice.model):
                continue
            if there.issuperset((choice.model, *choice.fallbacks, *choice.escalate_to)):
                self._kept[session] = until, replace(choice, version=self.version)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "models": sorted(self.candidates),
            "policy": self._inner.name,
            "ttl_s": self._ttl_s,
        }

    def health(self) -> dict[str, Any] | None:
        return {"state": "ok", "sessions": len(self._kept), "most": self._size}

    def close(self) -> None:
        return None


def first_user_text(call: Call) -> str:
    """Return the text of the first user message; "" without one."""
    messages = call.body.get("messages")
    if not isinstance(messages, list):
        return ""
    for message in messages:
        if isinstance(message, dict) and message.get("role") == "user":
            return content_text(message.get("content"))
    return ""
