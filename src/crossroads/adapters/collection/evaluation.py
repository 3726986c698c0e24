"""Measure a routed model on tasks: paired seeds of test rows, every row scored once and kept.

A seed draws its rows from a task's test rows by itself, so that all arms of a comparison see the
same ones. Scores are kept by row: an evaluation that was stopped goes on, and one with more rows
scores the new ones alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from crossroads.adapters.collection.batches import fitting
from crossroads.adapters.collection.rows import Row, fingerprint
from crossroads.adapters.collection.scoring import Facts, RowScore, score_rows
from crossroads.adapters.collection.tasks import Task
from crossroads.core.errors import UsageError
from crossroads.core.journal import append_line, read_lines
from crossroads.core.progress import Progress

ROWS = 200
SEEDS = (0, 1, 2)
_CHUNK = 32  # rows scored between two writes: what an interruption may lose


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """One arm on one task and seed.

    Attributes
    ----------
    nll : nats per answer token, all tokens of the rows together
    accuracy, accuracy_by_mean : share of rows whose answer is the likeliest option, by the sum and
        by the mean of its tokens' log-probabilities; None where answers are free
    rows, tokens : measured; fewer rows than asked for where the task has no more
    """

    arm: str
    task: str
    seed: int
    nll: float
    accuracy: float | None
    accuracy_by_mean: float | None
    rows: int
    tokens: int


@dataclass(kw_only=True, slots=True)
class Spent:
    """What measuring took, added up over all that it is handed to.

    Attributes
    ----------
    inserting : seconds to put routers and banks into the model
    scoring : seconds in which ``rows`` were scored; not those that were kept, nor what is made once
        in a first pass, such as merged weights
    """

    inserting: float = 0.0
    scoring: float = 0.0
    rows: int = 0


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    tasks: Iterable[Task],
    *,
    arm: str,
    rows: int = ROWS,
    seeds: Sequence[int] = SEEDS,
    facts: Mapping[str, Facts] | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    spent: Spent | None = None,
) -> list[TaskScore]:
    """Return the scores of an arm, by task and seed.

    Raises UsageError for fewer than one row or no seed.

    Parameters
    ----------
    model : with the router and its bank in it (``RoutedModel.model``), or the base model
    arm : names everything that decides the figures: router, settings, bank; scores in ``cache``
        are found by it
    facts : by task, what routers are told about rows, see ``scoring.score_rows``
    cache : folder of scores by row; None = nothing is kept
    spent : is added to; a row is scored before the clock starts
    """
    if rows < 1 or not seeds:
        raise UsageError(f"evaluation: expected rows and seeds, got {rows} rows, seeds {seeds!r}")
    drawn = [(task, draw_rows(tokenizer, task, rows=rows, seeds=seeds)) for task in tasks]
    whole = sum(len(union(by_seed)) for _, by_seed in drawn)
    found, before, is_cold = [], 0, spent is not None
    for task, by_seed in drawn:
        wanted = union(by_seed)
        kept = _Kept(cache, arm, task.name)
        known = kept.read()
        missing = [row for row in wanted if fingerprint([row]) not in known]
        for start in range(0, len(missing), _CHUNK):
            chunk = missing[start : start + _CHUNK]
            about = (facts or {}).get(task.name)
            if is_cold:
                score_rows(model, tokenizer, chunk[:1], facts=about)
                is_cold = False
            started = time.perf_counter()
            scored = score_rows(model, tokenizer, chunk, facts=about)
            if spent is not None:
                spent.scoring += time.perf_counter() - started
                spent.rows += len(chunk)
            known.update((fingerprint([row]), s) for row, s in zip(chunk, scored, strict=True))
            kept.add({fingerprint([row]): known[fingerprint([row])] for row in chunk})
            if progress:
                progress(before + len(wanted) - len(missing) + start + len(chunk), whole)
        before += len(wanted)
        for seed, chosen in by_seed.items():
            scores = [known[fingerprint([row])] for row in chosen]
            found.append(_task_score(arm, task.name, seed, scores))
    return found


def draw_rows(
    tokenizer: Any, task: Task, *, rows: int, seeds: Sequence[int]
) -> dict[int, list[Row]]:
    """Return the test rows of every seed, without replacement; all of them where there are no
    more than ``rows``.
    """
    pool = fitting(tokenizer, task, "test")
    found = {}
    for seed in seeds:
        order = np.random.default_rng([seed, len(pool)]).permutation(len(pool))
        found[seed] = [pool[place] for place in order[:rows]]
    return found


def union(by_seed: Mapping[int, Sequence[Row]]) -> list[Row]:
    """Return every row once, in the order of the seeds."""
    return list(dict.fromkeys(row for rows in by_seed.values() for row in rows))


def _task_score(arm: str, task: str, seed: int, scores: Sequence[RowScore]) -> TaskScore:
    tokens = sum(score.tokens for score in scores)
    return TaskScore(
        arm=arm,
        task=task,
        seed=seed,
        nll=sum(score.nll for score in scores) / tokens,
        accuracy=_share([score.right_by_sum for score in scores]),
        accuracy_by_mean=_share([score.right_by_mean for score in scores]),
        rows=len(scores),
        tokens=tokens,
    )


def _share(answers: Sequence[bool | None]) -> float | None:
    known = [answer for answer in answers if answer is not None]
    return sum(known) / len(known) if known else None


class _Kept:
    """Scores of one arm on one task, a line a row."""

    def __init__(self, folder: Path | None, arm: str, task: str) -> None:
        digest = hashlib.blake2b(arm.encode(), digest_size=8).hexdigest()
        self._path = None if folder is None else folder / f"{task}.{digest}.jsonl"

    def read(self) -> dict[str, RowScore]:
        if self._path is None:
            return {}

        def entry(line: Any) -> tuple[str, RowScore]:
            return line.pop("row"), RowScore(**line)

        return dict(read_lines(self._path, entry, remedy="remove the file to score its rows again"))

    def add(self, scores: Mapping[str, RowScore]) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for row, score in scores.items():
            append_line(self._path, {"row": row, **asdict(score)})
