"""A leaderboard in a folder: submissions come in, are judged once, and stay.

::

    board.json          what is judged: where the rows come from, their fingerprint, settings
    cache/              answers by model, reused by every submission (live boards)
    scores.json         score of every answer ever judged
    submissions/        NAME.json: each submission with its results, as judged
    results/            TIME-NAME.json: its figures
    leaderboard.json    all figures, best arena score first
    leaderboard.html    the same for people

A name is taken by its first submission: the same content again changes nothing, another one is
refused. Submissions that wait for answers have no name yet.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import msgspec

from crossroads.core.errors import InputError, UsageError
from crossroads.core.files import write_atomically
from crossroads.prompts.routerarena.evaluation import EvaluationSet, open_live, open_replay
from crossroads.prompts.routerarena.stored import Figures, read_stored

DEFAULT_OUTCOMES = "local"
_FORMAT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """Where the rows of a board come from.

    Attributes
    ----------
    outcomes : outcome table that is replayed: a file, a folder or the name of a shipped one
    rows : file of published rows instead, for a live board; needs a pool with endpoints
    pool : prices and endpoints
    split, reworded : size to demand of ``rows``, and the file of its robustness split
    code_runner : what runs programs (``crossroads.prompts.routerarena.worker``)
    """

    outcomes: str | None = None
    rows: str | None = None
    pool: str | None = None
    split: str | None = None
    reworded: str | None = None
    code_runner: str = ""

    def __post_init__(self) -> None:
        if self.rows is not None and self.outcomes is not None:
            raise UsageError("a board is either of --outcomes or of --rows; give one of them")
        if self.rows is not None and self.pool is None:
            raise UsageError("--rows needs --pool: the models that answer, with their prices")

    @property
    def is_default(self) -> bool:
        return self == DataSource()

    def resolved(self) -> DataSource:
        """Return the source with its files' full paths: a board is used from other folders too."""

        def full(text: str | None) -> str | None:
            return str(Path(text).resolve()) if text is not None and Path(text).exists() else text

        return replace(
            self,
            outcomes=full(self.outcomes),
            rows=full(self.rows),
            pool=full(self.pool),
            reworded=full(self.reworded),
        )

    def open(self) -> EvaluationSet:
        """Read the rows. Raises InputError as the readers do."""
        if self.rows is not None:
            assert self.pool is not None
            return open_live(self.rows, self.pool, split=self.split, reworded=self.reworded)
        return open_replay(self.outcomes or DEFAULT_OUTCOMES, self.pool)


class _Versioned(TypedDict):
    format: int


class _Facts(_Versioned):
    """What ``board.json`` must hold."""

    source: DataSource
    fingerprint: str
    data: str
    evidence: str
    num_rows: int
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Board:
    """A leaderboard's folder and what it judges on. Make or open it with ``open_board``."""

    folder: Path
    source: DataSource
    evaluation: EvaluationSet

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def archive(self, router_name: str) -> Path:
        return self.folder / "submissions" / f"{router_name}.json"

    def results(self) -> list[dict[str, Any]]:
        """Return the figures of all submissions, best first; ties by accuracy, then by name."""
        return _sorted_results(self.folder)


def open_board(folder: str | Path, source: DataSource | None = None) -> Board:
    """Open a board, or make one of a source (the shipped table ``local`` where none is given).

    Raises InputError for a board that judges on something else than ``source``, and where the data
    it was made of have changed.
    """
    folder = Path(folder)
    path = folder / "board.json"
    given = (source or DataSource()).resolved()
    if not path.exists():
        evaluation = given.open()
        described: dict[str, Any] = {
            "format": _FORMAT,
            "source": asdict(given),
            "fingerprint": evaluation.fingerprint,
            "data": evaluation.name,
            "evidence": evaluation.evidence,
            "num_rows": len(evaluation.rows),
            "models": list(evaluation.pool.names),
            "difficulty": evaluation.cut_offs.to_dict() if evaluation.cut_offs else None,
            "notes": list(evaluation.notes),
        }
        write_atomically(path, json.dumps(described, indent=1) + "\n")
        return Board(folder=folder, source=given, evaluation=evaluation)
    facts = read_board(folder)
    kept = msgspec.convert(facts["source"], DataSource)
    if not given.is_default and given != kept:
        raise InputError(
            f"{folder}: this board judges on {facts['data']!r}; leave out the data options, or "
            "choose another --board"
        )
    evaluation = kept.open()
    if evaluation.fingerprint != facts["fingerprint"]:
        raise InputError(
            f"{folder}: the data of this board have changed since it was made; restore them, or "
            "start another board"
        )
    return Board(folder=folder, source=kept, evaluation=evaluation)


def read_board(folder: str | Path) -> dict[str, Any]:
    """Return what a board's folder says of itself. Raises InputError where it holds no board."""
    path = Path(folder) / "board.json"
    if not path.exists():
        raise InputError(
            f"{folder}: no board here; submitting to it makes one: crossroads arena submit"
        )
    remedy = "start another board"
    if read_stored(path, _Versioned, remedy=remedy)["format"] != _FORMAT:
        raise InputError(f"{path}: made by another version of crossroads; {remedy}")
    facts: dict[str, Any] = read_stored(path, _Facts, remedy=remedy)
    return facts


def read_figures(path: Path) -> dict[str, Any]:
    """Return a submission's figures. Raises InputError for a damaged file."""
    figures: dict[str, Any] = read_stored(
        path, Figures, remedy="delete it and submit that router again"
    )
    return figures


def _sorted_results(folder: Path) -> list[dict[str, Any]]:
    found = [read_figures(path) for path in (folder / "results").glob("*.json")]
    return sorted(found, key=lambda f: (-f["arena_score"], -f["accuracy"], f["router_name"]))
