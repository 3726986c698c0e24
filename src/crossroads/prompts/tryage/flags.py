"""Goals written into a prompt: ``[Flag: smallest model]``, ``[lambda size=0.5]``.

A flag adds a weight to a goal; ``lambda`` gives the weights themselves, several at once if wished,
and stands above flags. Both are taken out of the prompt before it is read by a router or answered.
Words are compared without case and repeated spaces. Of two weights of the same kind for one goal,
the later counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

from crossroads.core.errors import UsageError, unknown_name

OnUnknown = Literal["refuse", "ignore"]
_LONGEST = 200  # characters inside brackets: longer ones are no flags
_BRACKETS = re.compile(
    rf"\[\s*(?:flag\s*:([^\[\]\n]{{0,{_LONGEST}}})|lambda\s([^\[\]\n]{{0,{_LONGEST}}}))\][ \t]*",
    re.IGNORECASE,
)

# Goals are scaled to [0, 1] over the pool. A flag weighs its goal like a whole unit of loss: a
# clear wish, which nevertheless does not send every prompt to the expert that meets it best.
FLAG_WEIGHT = 1.0
FLAGS: Mapping[str, tuple[str, float]] = MappingProxyType(
    {
        "smallest model": ("size", FLAG_WEIGHT),
        "smallest": ("size", FLAG_WEIGHT),
        "small model": ("size", FLAG_WEIGHT),
        "recent": ("recency", FLAG_WEIGHT),
        "newest": ("recency", FLAG_WEIGHT),
        "cheapest": ("cost", FLAG_WEIGHT),
        "cheap": ("cost", FLAG_WEIGHT),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlaggedPrompt:
    """A prompt without its flags, and the weight of each goal they named."""

    prompt: str
    weights: Mapping[str, float] = field(default_factory=dict)


def parse_flags(
    text: str,
    *,
    goals: Collection[str] = ("size", "recency", "cost"),
    flags: Mapping[str, tuple[str, float]] = FLAGS,
    on_unknown: OnUnknown = "refuse",
) -> FlaggedPrompt:
    """Take the flags out of a prompt.

    A weight that is no number >= 0 raises UsageError. A prompt without flags is returned unchanged,
    one with flags without the spaces that followed them and at its ends.

    Parameters
    ----------
    goals : names that ``lambda`` may weigh
    flags : words -> (goal, weight), in lower case; add your own to ``FLAGS``
    on_unknown : ``refuse`` raises UsageError naming the known flags or goals; ``ignore`` leaves
        brackets that are not understood in the prompt
    """
    if on_unknown not in get_args(OnUnknown):
        raise UsageError(f"on_unknown: expected refuse or ignore, got {on_unknown!r}")
    flagged: dict[str, float] = {}
    given: dict[str, float] = {}

    def take(match: re.Match[str]) -> str:
        flag, assignments = match.groups()
        try:
            if flag is not None:
                flagged.update([_flag(flag, flags)])
            else:
                given.update(_assignments(assignments, goals))
        except UsageError:
            if on_unknown == "refuse":
                raise
            return match.group()
        return ""

    left = _BRACKETS.sub(take, text)
    prompt = text if left == text else left.strip()
    return FlaggedPrompt(prompt=prompt, weights={**flagged, **given})


def _flag(text: str, flags: Mapping[str, tuple[str, float]]) -> tuple[str, float]:
    words = " ".join(text.split()).casefold()
    if words not in flags:
        raise unknown_name("flag", words, flags)
    return flags[words]


def _assignments(text: str, goals: Collection[str]) -> dict[str, float]:
    """Read ``size=0.5 cost=1``, with spaces, commas or semicolons between."""
    weights: dict[str, float] = {}
    for assignment in re.split(r"[\s,;]+", re.sub(r"\s*=\s*", "=", text.strip())):
        goal, _, number = assignment.partition("=")
        name = goal.casefold()
        if name not in goals:
            raise unknown_name("goal", name, goals)
        weights[name] = _weight(number, name)
    return weights


def _weight(text: str, goal: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise UsageError(
            f"goal {goal!r}: expected a weight >= 0, for instance [lambda {goal}=0.5], got {text!r}"
        )
    return weight
