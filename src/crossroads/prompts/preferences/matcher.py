"""Match the latest intent with the policies' texts by the cosine of their embeddings.

A policy's score is its best cosine over name with description and each of its examples. Route
``other`` has the fixed score tau. Two closed lists of words decide what an embedding cannot: a
message of thanks is ``other``, and a bare follow-up ("why is that?") asks what the turn before it
asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from crossroads.models.encoders import Float32, get_encoder
from crossroads.prompts.preferences.backend import RouteChoice
from crossroads.prompts.preferences.conversation import Turn
from crossroads.prompts.preferences.policies import OTHER, Policy

# Chosen on training subjects only (benchmarks/prompts/arch_router.py), per encoder.
TAUS = {"static": 0.10, "minilm": 0.10}
_MOST_WORDS = 8  # of a message of thanks or a bare follow-up
_THANKS = frozenset("thanks thank thx cheers bye goodbye".split())
_CLOSING = _THANKS | frozenset(
    "great perfect wonderful excellent nice okay ok cool good fine got it clear done".split()
)
_EMPTY = frozenset(
    "a about again all am and any anything are as be but by can certain come could did do does "
    "else elaborate explain find for from get go have help how i in is it just know like lot "
    "make me mean more much my no not now of on one or others out please really rest right said "
    "same say see so some still sure tell than that the them then there these they think this "
    "those to too us very was we were what which why will with would wrong yes you your".split()
)


class PolicyMatcher:
    """The back end ``matcher``.

    Parameters
    ----------
    encoder : ``static`` or ``minilm``
    tau : cosine in [-1, 1] below which no policy fits; default: the encoder's of ``TAUS``
    """

    name = "matcher"

    def __init__(self, *, encoder: str = "static", tau: float | None = None) -> None:
        self._encoder = get_encoder(encoder)
        self.tau = TAUS[encoder] if tau is None else tau
        self.version = self._encoder.version
        self._known: dict[Policy, Float32] = {}

    def choose(self, policies: Sequence[Policy], turns: Sequence[Turn]) -> RouteChoice:
        intent = open_intent(turns)
        if not intent:
            scores = dict.fromkeys((policy.name for policy in policies), 0.0)
            return RouteChoice(route=OTHER, scores={**scores, OTHER: 1.0})
        intent_D = self._encoder.encode([intent])[0]
        scores = {p.name: float((self._texts(p) @ intent_D).max()) for p in policies}
        scores[OTHER] = self.tau
        return RouteChoice(route=max(scores, key=lambda name: scores[name]), scores=scores)

    def _texts(self, policy: Policy) -> Float32:
        """Return the embeddings of a policy's texts, shape (1 + examples, D)."""
        if policy not in self._known:
            self._known[policy] = self._encoder.encode([policy_text(policy), *policy.examples])
        return self._known[policy]


def policy_text(policy: Policy) -> str:
    """Return name and description as prose."""
    return f"{re.sub(r'[_-]+', ' ', policy.name)}: {policy.description}"


def open_intent(turns: Sequence[Turn]) -> str:
    """Return the text that says what the user wants now; empty where nothing is left to do."""
    said = [turn.content for turn in turns if turn.role == "user"]
    while said:
        words = re.findall(r"[a-z']+", said[-1].lower())
        is_short = len(words) <= _MOST_WORDS
        if words and is_short and set(words) & _CLOSING and set(words) <= _CLOSING | _EMPTY | {"answers", "nothing"}:
            return ""
        if not (words and is_short and set(words) <= _EMPTY) or len(said) == 1:
            return said[-1]
        said.pop()
    return ""
