"""The catalogue: a card for every published system, and the way to measure its claim here.

The cards are data (``cards.toml`` beside this file); reading them imports no system. A card whose
``verify`` names a function has a claim that can be measured; the others are planned.
"""

from __future__ import annotations

import importlib
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

from crossroads.core.errors import InputError, UsageError, unknown_name

Outcome = Literal["holds", "holds in direction", "null", "fails"]
Status = Literal["planned", "verified"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What a system's authors report, and what we measured (empty until we did)."""

    paper: str
    ours: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One published system.

    Attributes
    ----------
    name : what the command line calls it
    title, arxiv, year : of the paper; ``arxiv`` is the identifier without version
    family : the room it belongs to
    routes : what it routes to what, one phrase
    claim : the paper's and ours
    verify : ``module:function`` measuring the claim; empty while the system is planned
    """

    name: str
    title: str
    arxiv: str
    year: int
    family: str
    routes: str
    claim: Claim
    verify: str = ""

    @property
    def status(self) -> Status:
        return "verified" if self.verify else "planned"

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What measuring a claim gave.

    Attributes
    ----------
    name : the system
    verdict : ``holds`` (the figure), ``holds in direction`` (the sign, not the size), ``null`` (no
        difference seen) or ``fails`` (the opposite, or an exact property broken)
    paper, measured : figures by name, plain data
    seeds : the seeds used; empty where nothing is random
    seconds : wall time, filled in by ``verify``
    data : what it was measured on, one line
    """

    name: str
    verdict: Outcome
    paper: Mapping[str, Any]
    measured: Mapping[str, Any]
    data: str
    seeds: tuple[int, ...] = field(default=())
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Outcome):
            expected = ", ".join(get_args(Outcome))
            raise InputError(
                f"verdict of {self.name!r}: expected one of {expected}, got {self.verdict!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "paper": dict(self.paper),
            "measured": dict(self.measured),
            "seeds": list(self.seeds),
            "seconds": self.seconds,
            "data": self.data,
        }


@cache
def load_cards() -> tuple[Card, ...]:
    """Return all cards, grouped by family as in the file."""
    text = resources.files(__package__).joinpath("cards.toml").read_text("utf-8")
    return tuple(
        Card(**{**entry, "claim": Claim(**entry["claim"])}) for entry in tomllib.loads(text)["card"]
    )


def families() -> list[str]:
    """Return the families that have cards, in their order of appearance."""
    return list(dict.fromkeys(card.family for card in load_cards()))


def card(name: str) -> Card:
    """Return one card. Raises UsageError with the nearest spelling."""
    by_name = {c.name: c for c in load_cards()}
    if name not in by_name:
        raise unknown_name("system", name, by_name)
    return by_name[name]


def verifiable(name: str) -> Card:
    """Return a card whose claim can be measured. Raises UsageError for a planned system."""
    found = card(name)
    if not found.verify:
        ready = ", ".join(c.name for c in load_cards() if c.verify)
        raise UsageError(
            f"system {name!r} is planned: it has no claim to measure yet; verifiable: {ready}"
        )
    return found


def verify(name: str, *, full: bool = False) -> Verdict:
    """Measure a system's claim and return the verdict.

    ``full`` asks for the long run instead of the small one, where the claim has both. Raises
    UsageError for unknown and planned systems, and what the measurement raises (for instance
    UnavailableError where its data are missing).
    """
    module, _, function = verifiable(name).verify.partition(":")
    start = time.perf_counter()
    verdict: Verdict = getattr(importlib.import_module(module), function)(full)
    return replace(verdict, seconds=time.perf_counter() - start)
