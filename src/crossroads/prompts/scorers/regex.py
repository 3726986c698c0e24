"""Scoring by regular expressions, each search bounded in time.

A pattern such as ``(a+)+$`` takes exponential time on some answers and cannot be interrupted in the
process that runs it, so searches run in the worker process.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from crossroads.core.errors import UsageError
from crossroads.prompts.scorers.base import Scorer, ScoringError
from crossroads.prompts.scorers.text import exact
from crossroads.prompts.scorers.worker import WorkerTimeoutError, shared_worker

SECONDS = 2.0  # a search of an answer takes microseconds unless the pattern is catastrophic


def regex_scorer(pattern: str) -> Scorer:
    """Return the scorer ``regex:PATTERN``, or ``regex`` where ``pattern`` is empty.

    With a pattern, its last match in the answer (the first group, if it has one) is compared with
    the references as ``exact`` does. Without one the references are patterns themselves, and one
    match is enough. Raises UsageError for a pattern that is none.
    """
    if not pattern:
        return _any_reference_matches
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"scorer 'regex:{pattern}': not a regular expression: {error}") from error
    return partial(_found_is_a_reference, pattern)


def last_match(pattern: str, text: str) -> str | None:
    """Return what the last match's first group, or the whole match, holds; None without a match.

    Runs in the worker. Raises re.error for a pattern that is none.
    """
    found, last = re.compile(pattern), None
    for match in found.finditer(text):
        last = match
    if last is None:
        return None
    return (last.group(1) or "") if found.groups else last.group()


def _found_is_a_reference(pattern: str, answer: str, references: Sequence[str]) -> float:
    found = _search(pattern, answer)
    return 0.0 if found is None else exact(found, references)


def _any_reference_matches(answer: str, references: Sequence[str]) -> float:
    return float(any(_search(pattern, answer) is not None for pattern in references))


def _search(pattern: str, answer: str) -> str | None:
    try:
        found = shared_worker().ask("regex", [pattern, answer], seconds=SECONDS)
    except WorkerTimeoutError as error:
        raise ScoringError(
            f"regular expression {pattern!r:.80} took more than {SECONDS:g} s; simplify it"
        ) from error
    except ValueError as error:
        raise ScoringError(f"regular expression {pattern!r:.80} failed: {error}") from error
    return None if found is None else str(found)
