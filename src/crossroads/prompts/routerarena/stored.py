"""Reading back what a board stores: whole and of the right shape, or an error that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import msgspec

from crossroads.core.errors import InputError


class Figures(TypedDict):
    """What a file of ``results/`` must hold; the figures of a leaderboard row."""

    router_name: str
    models: list[str]
    submitted: str
    digest: str
    arena_score: float
    accuracy: float
    cost_per_1k_usd: float
    num_rows: int
    num_failed: int
    optimality: dict[str, dict[str, float | None]] | None
    robustness: dict[str, Any] | None
    latency: dict[str, Any] | None
    breakdown: dict[str, dict[str, dict[str, float]]]
    notes: list[str]


class Ranked(Figures):
    """A row of ``leaderboard.json``."""

    rank: int


class Ranking(TypedDict):
    """What ``leaderboard.json`` must hold."""

    data: str
    evidence: str
    num_rows: int
    notes: list[str]
    rows: list[Ranked]


class Archived(TypedDict):
    """What is read again of a file of ``submissions/``."""

    digest: str


def read_stored(path: Path, shape: Any, *, remedy: str) -> Any:
    """Return a file's JSON as plain data, which may hold more than ``shape`` asks for.

    Raises InputError with the file and the remedy where it cannot be read or has another shape.
    """
    try:
        content = json.loads(path.read_text("utf-8"), parse_constant=_refuse)
        msgspec.convert(content, type=shape)
    except (OSError, ValueError, RecursionError, msgspec.ValidationError) as error:
        problem = " ".join(str(error).split())
        raise InputError(f"{path}: damaged ({problem:.100}); {remedy}") from error
    return content


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
