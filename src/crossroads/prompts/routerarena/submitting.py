"""Submitting: check, answer, score, rank; once for every name.

The order of what is written makes a kill harmless: answers and scores as they come, then the
archived file, which takes the name, then the figures, then the leaderboard. The same submission
again makes up for what is missing. An outage of the models is no reason for a score of 0: as long
as answers may still come nothing but the answers that came is written.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crossroads import __version__
from crossroads.core.errors import InputError
from crossroads.core.files import write_atomically
from crossroads.core.progress import Progress
from crossroads.prompts.experts.base import Expert
from crossroads.prompts.experts.registry import build_expert
from crossroads.prompts.pool import ModelCard
from crossroads.prompts.routerarena.board import Board, read_figures
from crossroads.prompts.routerarena.brought import believed, given_results
from crossroads.prompts.routerarena.inference import (
    Call,
    InferenceSettings,
    Result,
    require_answers,
    run_calls,
)
from crossroads.prompts.routerarena.judging import (
    Judged,
    calls_of,
    choices_of,
    figures_of,
    judge_calls,
)
from crossroads.prompts.routerarena.names import canonical_name
from crossroads.prompts.routerarena.page import write_leaderboard
from crossroads.prompts.routerarena.stored import Archived, read_stored
from crossroads.prompts.routerarena.submission import INDEX, Submission
from crossroads.prompts.routerarena.validate import check_submission


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What submitting gave.

    Attributes
    ----------
    figures : the row's figures
    rank : place on the board, from 1
    is_new : False where the same submission was there already
    is_changed : whether its figures differ from those that were there; True where none were
    num_reused : scores an earlier run had made
    """

    figures: Mapping[str, Any]
    rank: int
    is_new: bool
    is_changed: bool
    num_reused: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


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

    The same submission again changes nothing; ``force`` judges it again, asks for the answers it
    lacks and rewrites what is stored of it. Raises SubmissionError with every problem found,
    InputError where the name is taken by another submission, UnavailableError where answers are
    missing that may come later.
    """
    evaluation = board.evaluation
    check_submission(submission, evaluation)
    there = _already_there(board, submission)
    if there is not None and not force:
        write_leaderboard(board)  # a kill may have come before it
        return _outcome(board, there, there, num_reused=there["num_rows"])
    given = given_results(submission, evaluation)
    missing = [call for call in calls_of(submission, evaluation) if call not in given]
    run = run_calls(
        evaluation, missing, board.cache, settings=settings, build=build, progress=progress
    )
    require_answers(run)
    check_submission(_completed(submission, board, {**given, **run}), evaluation, results=True)
    chosen = frozenset(choices_of(submission, evaluation))
    results = {**believed(given, evaluation, board.cache, chosen=chosen), **run}
    complete = _completed(submission, board, results)
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
    return _outcome(board, summary, there, num_reused=num_reused)


def _already_there(board: Board, submission: Submission) -> dict[str, Any] | None:
    """Return the figures of the same submission, None for a new name; else raise InputError."""
    archive, name = board.archive(submission.router_name), submission.router_name
    is_archived = archive.exists()
    summaries = [figures for figures in board.results() if figures["router_name"] == name]
    digests = {figures["digest"] for figures in summaries}
    if is_archived:
        remedy = "delete it and submit that router again"
        digests.add(read_stored(archive, Archived, remedy=remedy)["digest"])
    if digests - {submission.digest}:
        raise InputError(
            f"the board has another submission named {name!r}; choose another router_name"
        )
    # With only one of the two it was stopped between them: judge it again.
    return summaries[0] if summaries and is_archived else None


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
    now = datetime.now(UTC)
    summary = {
        "router_name": submission.router_name,
        "models": list(submission.models),
        "submitted": there["submitted"] if there else now.isoformat(timespec="seconds"),
        "digest": submission.digest,
        "crossroads": __version__,
        **figures,
    }
    _archive(board, submission, entries)
    stamp = now.strftime("%Y%m%dT%H%M%S%fZ")
    new_path = board.folder / "results" / f"{stamp}-{submission.router_name}.json"
    path = _summary_path(board, submission.digest) or new_path
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
    """Write the archived file; of two submissions at the same moment one gets the name."""
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
        temporary.replace(path)  # the same submission: as it was judged now
    finally:
        with suppress(OSError):
            temporary.unlink()


def _summary_path(board: Board, digest: str) -> Path | None:
    paths = sorted((board.folder / "results").glob("*.json"))
    return next((path for path in paths if read_figures(path)["digest"] == digest), None)


def _outcome(
    board: Board, summary: Mapping[str, Any], there: Mapping[str, Any] | None, *, num_reused: int
) -> Outcome:
    names = [figures["router_name"] for figures in board.results()]
    return Outcome(
        figures=dict(summary),
        rank=names.index(summary["router_name"]) + 1,
        is_new=there is None,
        is_changed=there is None or _comparable(summary) != _comparable(there),
        num_reused=num_reused,
    )


def _comparable(summary: Mapping[str, Any]) -> str:
    """Return the figures without the version that computed them."""
    return json.dumps({**summary, "crossroads": ""}, sort_keys=True)
