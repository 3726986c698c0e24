"""Match the latest intent with the policies' texts by the cosine of their embeddings.

A policy's score is the best cosine of the intent with name and description, or an example, less
what all descriptions have in common (the mean over the 57 of ``subjects``); ``other`` has the
fixed score tau. Closed lists of words decide what an embedding cannot: a message of thanks is
``other``, and a bare follow-up ("why is that?") asks what the turn before it asked. What holds a
question or a request ("good, now tell me more") is no thanks, nor is a first turn that has no word
of thanks or parting, whatever else it says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from crossroads.core.errors import InputError
from crossroads.models.embedding_cache import encode_cached
from crossroads.models.encoders import Float32, get_encoder, unit_rows
from crossroads.prompts.preferences.backend import RouteChoice
from crossroads.prompts.preferences.conversation import Turn
from crossroads.prompts.preferences.policies import OTHER, Policy
from crossroads.prompts.preferences.subjects import DESCRIPTIONS, subject_policy

# Where training subjects are routed best (benchmarks/prompts/arch_router.py), by encoder.
TAUS = {"static": 0.10, "minilm": 0.11}
_MOST_WORDS = 8  # of a message of thanks or a bare follow-up
_THANKS = frozenset({"thanks", "thank", "thx", "cheers", "bye", "goodbye"})
_SETTLED_TEXT = """
great perfect wonderful excellent nice okay ok cool good fine got clear done answers helpful nothing
"""
_BARE_TEXT = """
a about again all am an and any anything are as be but by can certain come could did do does
else elaborate explain find for from get go have help how i in is it just know like lot lots
make me mean more much my no not now of on one or others out please really rest right said
same say see so some still sure tell than that the them then there these they think this
those to too us very was we were what which why will with would wrong yes you your
"""
_CLOSING = _THANKS | frozenset(_SETTLED_TEXT.split())  # thanks only after an answer
_BARE = frozenset(_BARE_TEXT.split())
_JUDGING = "perfect|wonderful|excellent|nice|great|cool|good|fine|okay|ok|clear|done|helpful"
# What a request begins with where bare words make it up: an order, or the head of a question.
_ORDERS = (
    "tell|explain|elaborate|help me"
    "|(?:say|get|find|make|go) (?:me|it|this|that|them|more|again|on|out|any|some|the)"
)
_QUESTIONS = (
    "why|how|which|what(?! an? )"
    "|(?:can|could|would|will|do|does|did|is|are|was|were)"
    " (?:you|i|it|this|that|these|those|they|them|there|we|the|any)"
)
# "and the rest", "one more"
_FRAGMENTS = r"(?<!no )(?:(?:the|one|some|any) )?(?:more|rest|others)(?=$|[^\w\s'])"
# What may stand before that in its clause: "good one now tell me", "thanks but why".
_LEADS = f"thanks|thank you|thx|cheers|{_JUDGING}|and|now|then|so|but|just|one|yes|no"
_REQUEST = re.compile(
    rf"(?:^|[^\w\s']|\b(?:{_LEADS}) )\s*(?:(?:{_ORDERS}|{_QUESTIONS})\b|{_FRAGMENTS})"
    rf"|[?]|\bplease\b|\bwould like (?:to|more|you)\b|\bnot (?:\w+ )?(?:{_JUDGING})\b"
)


class PolicyMatcher:
    """The back end ``matcher``.

    Parameters
    ----------
    encoder : ``static`` or ``minilm``
    tau : score in [-1, 1] that a policy must exceed; default: the encoder's of ``TAUS``
    """

    name = "matcher"

    def __init__(self, *, encoder: str = "static", tau: float | None = None) -> None:
        if tau is not None and not -1 <= tau <= 1:
            raise InputError(f"preference back end 'matcher': expected tau in [-1, 1], got {tau!r}")
        self._encoder = get_encoder(encoder)
        self.tau = TAUS[encoder] if tau is None else tau
        self.version = self._encoder.version
        texts = [policy_text(subject_policy(subject)) for subject in DESCRIPTIONS]
        self._common_D: Float32 = encode_cached(self._encoder, texts).mean(axis=0)
        self._known: dict[tuple[Policy, ...], list[Float32]] = {}

    def choose(self, policies: Sequence[Policy], turns: Sequence[Turn]) -> RouteChoice:
        intent = open_intent(turns)
        if not intent:
            none = dict.fromkeys((policy.name for policy in policies), 0.0)
            return RouteChoice(route=OTHER, scores={**none, OTHER: 1.0})
        intent_D = self._encoder.encode([intent])[0]
        scores = {
            policy.name: float((texts_XD @ intent_D).max())
            for policy, texts_XD in zip(policies, self._texts(tuple(policies)), strict=True)
        }
        scores[OTHER] = self.tau
        return RouteChoice(route=max(scores, key=lambda name: scores[name]), scores=scores)

    def _texts(self, policies: tuple[Policy, ...]) -> list[Float32]:
        """Return each policy's unit rows, (1 + examples, D); those of the last set are kept."""
        if policies not in self._known:
            rows = [self._encoder.encode([policy_text(p), *p.examples]) for p in policies]
            self._known = {policies: [unit_rows(r - self._common_D) for r in rows]}
        return self._known[policies]


def policy_text(policy: Policy) -> str:
    """Return name and description as prose."""
    return f"{re.sub(r'[_-]+', ' ', policy.name)}: {policy.description}"


def open_intent(turns: Sequence[Turn]) -> str:
    """Return the text that says what the user wants now; empty where nothing is left to do."""
    said = [turn.content for turn in turns if turn.role == "user"]
    for number, text in reversed(list(enumerate(said))):
        words = set(re.findall(r"[a-z']+", text.lower()))
        if not words or len(text.split()) > _MOST_WORDS or not words <= _BARE | _CLOSING:
            return text
        closing = words & (_CLOSING if number else _THANKS)
        if closing and not _REQUEST.search(" ".join(text.lower().split())):
            return ""
    return said[0] if said else ""
