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
refused.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crossroads import __version__
from crossroads.core.errors import InputError, UsageError
from crossroads.core.files import write_atomically
from crossroads.core.progress import Progress
from crossroads.prompts.experts.base import Expert
from crossroads.prompts.experts.registry import build_expert
from crossroads.prompts.pool import ModelCard
from crossroads.prompts.routerarena.evaluation import EvaluationSet, open_live, open_replay
from crossroads.prompts.routerarena.inference import (
    Call,
    InferenceSettings,
    Result,
    run_calls,
)
from crossroads.prompts.routerarena.judging import (
    Judged,
    calls_of,
    figures_of,
    given_results,
    judge_calls,
)
from crossroads.prompts.routerarena.names import canonical_name
from crossroads.prompts.routerarena.submission import INDEX, Submission
from crossroads.prompts.routerarena.validate import check_submission

DEFAULT_OUTCOMES = "local"
_FORMAT = 1


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


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What submitting gave.

    Attributes
    ----------
    figures : the row's figures
    rank : place on the board, from 1
    is_new : False where the same submission was there already
    num_reused : scores an earlier run had made
    """

    figures: Mapping[str, Any]
    rank: int
    is_new: bool
    num_reused: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


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
    kept = DataSource(**facts["source"])
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
    try:
        facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
        is_ours = facts["format"] == _FORMAT and isinstance(facts["source"], dict)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); start another board") from error
    if not is_ours:
        raise InputError(f"{path}: made by another version of crossroads; start another board")
    return facts


def submit(
    board: Board,
    submission: Submission,
    *,
    force: bool = False,
    num_processes: int | None = None,
    settings: InferenceSettings | None = None,
    build: Callable[[ModelCard], Expert] = build_expert,
    progress: Progress | None = None,
) -> Outcome:
    """Check, answer, score and rank a submission.

    The same submission again changes nothing; ``force`` scores it again. Raises SubmissionError
    with every problem found, InputError where the name is taken by another submission.
    """
    evaluation = board.evaluation
    check_submission(submission, evaluation)
    there = _already_there(board, submission)
    if there is not None and not force:
        return _outcome(board, there, is_new=False, num_reused=there["num_rows"])
    results = given_results(submission, evaluation)
    missing = [call for call in calls_of(submission, evaluation) if call not in results]
    results |= run_calls(
        evaluation, missing, board.cache, settings=settings, build=build, progress=progress
    )
    complete = _completed(submission, board, results)
    check_submission(complete, evaluation, results=True)
    judged, num_reused = judge_calls(
        results,
        evaluation,
        board.folder / "scores.json",
        force=force,
        num_processes=num_processes,
        code_runner=board.source.code_runner,
    )
    figures = figures_of(submission, evaluation, judged)
    summary = _publish(board, submission, _with_figures(complete, board, judged), figures, there)
    return _outcome(board, summary, is_new=there is None, num_reused=num_reused)


def _already_there(board: Board, submission: Submission) -> dict[str, Any] | None:
    """Return the figures of the same submission, None for a new name; else raise InputError."""
    archive = board.archive(submission.router_name)
    if not archive.exists():
        return None
    if json.loads(archive.read_text("utf-8"))["digest"] != submission.digest:
        raise InputError(
            f"the board has another submission named {submission.router_name!r}; choose another "
            "router_name"
        )
    for summary in board.results():
        if summary["digest"] == submission.digest:
            return summary
    return None  # it was stopped between archive and figures: judge it again


def _completed(submission: Submission, board: Board, results: Mapping[Call, Result]) -> Submission:
    """Return the submission with the results that were run."""
    names = board.evaluation.model_by_canonical
    entries = []
    for entry in submission.predictions:
        call = (entry[INDEX], names[canonical_name(entry["prediction"])])
        entries.append({**entry, "generated_result": results[call]})
    return Submission(
        config=submission.config, predictions=entries, robustness=submission.robustness
    )


def _publish(
    board: Board,
    submission: Submission,
    entries: list[dict[str, Any]],
    figures: Mapping[str, Any],
    there: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Archive the submission, write its figures and the leaderboard; return the figures."""
    from crossroads.prompts.routerarena.page import write_leaderboard

    now = datetime.now(UTC)
    summary = {
        "router_name": submission.router_name,
        "models": list(submission.models),
        "submitted": there["submitted"] if there else now.isoformat(timespec="seconds"),
        "digest": submission.digest,
        "crossroads": __version__,
        **figures,
    }
    if there is None:
        _archive(board, submission, entries)
        stamp = now.strftime("%Y%m%dT%H%M%S%fZ")
        path = board.folder / "results" / f"{stamp}-{submission.router_name}.json"
    else:
        path = _summary_path(board, submission.digest)
    write_atomically(path, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    write_leaderboard(board)
    return summary


def _with_figures(complete: Submission, board: Board, judged: Judged) -> list[dict[str, Any]]:
    names = board.evaluation.model_by_canonical
    entries = []
    for entry in complete.predictions:
        call = (entry[INDEX], names[canonical_name(entry["prediction"])])
        accuracy = 0.0 if call in judged.failed else judged.score[call]
        entries.append({**entry, "cost": judged.cost[call], "accuracy": accuracy})
    return entries


def _archive(board: Board, submission: Submission, entries: list[dict[str, Any]]) -> None:
    """Write the archived file; of two at the same moment one gets the name."""
    content = {
        "digest": submission.digest,
        "config": dict(submission.config),
        "predictions": entries,
        "robustness": submission.robustness,
    }
    path = board.archive(submission.router_name)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    write_atomically(temporary, json.dumps(content, indent=1) + "\n")
    try:
        os.link(temporary, path)  # fails where the name exists, unlike a rename
    except FileExistsError:
        _already_there(board, submission)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _summary_path(board: Board, digest: str) -> Path:
    for path in sorted((board.folder / "results").glob("*.json")):
        if json.loads(path.read_text("utf-8"))["digest"] == digest:
            return path
    raise InputError(f"{board.folder}: the figures of a submission vanished; submit it again")


def _sorted_results(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in (folder / "results").glob("*.json"):
        try:
            found.append(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: damaged ({error}); delete it and submit again") from error
    return sorted(found, key=lambda f: (-f["arena_score"], -f["accuracy"], f["router_name"]))


def _outcome(board: Board, summary: Mapping[str, Any], *, is_new: bool, num_reused: int) -> Outcome:
    names = [figures["router_name"] for figures in board.results()]
    rank = names.index(summary["router_name"]) + 1
    return Outcome(figures=dict(summary), rank=rank, is_new=is_new, num_reused=num_reused)
