"""From a chat's messages to what a preference router reads."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossroads.prompts.experts.base import content_text

logger = logging.getLogger(__name__)

MOST_TOKENS = 2048  # of prompt and conversation together
CHARS_PER_TOKEN = 4  # the rule of thumb that stands for a tokenizer
_SPOKEN = frozenset({"user", "assistant"})


@dataclass(frozen=True, slots=True)
class Turn:
    """A message with text; ``role`` is ``user`` or ``assistant``."""

    role: str
    content: str


def read_turns(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Return the spoken turns: no system or tool messages, none without text.

    A content in parts gives its text parts, joined by newlines. A role that is no text is dropped
    like one nobody knows.
    """
    turns = [
        Turn(role, content_text(message.get("content")))
        for message in messages
        if isinstance(role := message.get("role"), str) and role in _SPOKEN
    ]
    return [turn for turn in turns if turn.content.strip()]


def fit_conversation(
    turns: Sequence[Turn], *, prompt_chars: int, most_tokens: int = MOST_TOKENS
) -> list[Turn]:
    """Return the latest turns whose length fits, in their order.

    From the last turn backwards, turns are kept while ``(prompt_chars + their characters) / 4``
    is at most ``most_tokens``. The turn that would exceed it is kept only if the user said it, and
    ends the walk. If that leaves nothing, the last turn is kept. Warns where the first or last
    turn kept is not the user's, since what is asked may then be missing.
    """
    kept: list[Turn] = []
    chars = prompt_chars
    for turn in reversed(turns):
        chars += len(turn.content)
        fits = chars / CHARS_PER_TOKEN <= most_tokens
        if fits or turn.role == "user":
            kept.append(turn)
        if not fits:
            break
    kept = kept[::-1] or list(turns[-1:])
    for place, ends in zip(("first", "last"), (kept[:1], kept[-1:]), strict=True):
        if ends and ends[0].role != "user":
            logger.warning(
                "the %s message kept for routing is not the user's; the intent may be missing",
                place,
            )
    return kept
