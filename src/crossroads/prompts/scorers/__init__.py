"""Scorers: how right an answer is, given the references; from 0 to 1.

====================  ==============================================================================
name                  an answer scores 1 when
====================  ==============================================================================
exact                 it equals a reference, case, punctuation and white space aside
contains              a reference occurs in it as whole words, case and punctuation aside
numeric[:TOLERANCE]   its final number equals a reference; ``numeric:0.01`` allows 1 % of it
choice                the option letter it settles on is a reference
symbolic              its final formula equals a reference as mathematics (extra ``scorers``)
regex[:PATTERN]       what PATTERN finds equals a reference; without it, references are patterns
code[:SECONDS]        its Python code passes the references, which are tests, within SECONDS
judge:MODEL           (a share) what MODEL of the pool says; only where answers are collected
====================  ==============================================================================

Other packages add scorers through the entry-point group ``crossroads.scorers``: each entry is a
function from the text after the colon ("" without one) to a ``Scorer``; it raises UsageError for an
argument it does not take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points

from crossroads.core.errors import UsageError, unknown_name
from crossroads.prompts.scorers.base import Scorer, ScoringError
from crossroads.prompts.scorers.code import code_scorer
from crossroads.prompts.scorers.judge import JUDGE, judge_of
from crossroads.prompts.scorers.regex import regex_scorer
from crossroads.prompts.scorers.symbolic import symbolic_scorer
from crossroads.prompts.scorers.text import (
    choice,
    contains,
    exact,
    final_letter,
    final_number,
    normalise_answer,
    numeric,
)

__all__ = [
    "DEFAULT_SCORER",
    "GROUP",
    "Scorer",
    "ScoringError",
    "check_scorer",
    "choice",
    "contains",
    "exact",
    "final_letter",
    "final_number",
    "judge_of",
    "normalise_answer",
    "numeric",
    "parse_scorer",
    "scorer_names",
]

DEFAULT_SCORER = "contains"
GROUP = "crossroads.scorers"


def scorer_names() -> list[str]:
    """Return the names of all scorers, shipped and added by other packages."""
    return sorted({*_SCORERS, JUDGE, *_third_party()})


def parse_scorer(text: str) -> Scorer:
    """Return the scorer of a name such as ``exact`` or ``numeric:0.01``.

    The scorer raises ScoringError where it cannot say. Raises UsageError for an unknown name, a
    wrong argument, and ``judge``, which needs a pool; MissingExtraError where a library is missing.
    """
    name, _, argument = text.partition(":")
    if name == JUDGE:
        raise UsageError(
            f"scorer {text!r}: a judge is a model of a pool; score with it where answers are "
            "collected (crossroads collect)"
        )
    if name in _SCORERS:
        return _SCORERS[name](argument)
    if name in _third_party():
        return partial(_bounded, text, _third_party()[name].load()(argument))
    raise unknown_name("scorer", name, scorer_names())


def check_scorer(text: str) -> None:
    """Raise the error of ``parse_scorer`` for a wrong scorer; ``judge:MODEL`` passes."""
    if judge_of(text) is None:
        parse_scorer(text)


@cache
def _third_party() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _bounded(name: str, score: Scorer, answer: str, references: Sequence[str]) -> float:
    """Score with foreign code, whatever it raises or returns."""
    try:
        value = float(score(answer, references))
    except Exception as error:  # foreign code: the cell stays unscored
        raise ScoringError(f"scorer {name!r} failed: {type(error).__name__}: {error}") from error
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise ScoringError(f"scorer {name!r}: expected a score in [0, 1], got {value!r}")
    return value


def _plain(name: str, score: Scorer, argument: str) -> Scorer:
    """Return a scorer that takes no argument."""
    if argument:
        raise UsageError(f"scorer '{name}:{argument}': {name} takes no argument; write {name}")
    return score


def _numeric(argument: str) -> Scorer:
    try:
        tolerance = float(argument or 0)
    except ValueError:
        tolerance = -1.0
    if not 0 <= tolerance < 1:
        raise UsageError(
            f"scorer 'numeric:{argument}': expected numeric:TOLERANCE with 0 <= TOLERANCE < 1"
        )
    return partial(numeric, tolerance=tolerance)


_SCORERS: dict[str, Callable[[str], Scorer]] = {
    "exact": partial(_plain, "exact", exact),
    "contains": partial(_plain, "contains", contains),
    "numeric": _numeric,
    "choice": partial(_plain, "choice", choice),
    "symbolic": symbolic_scorer,
    "regex": regex_scorer,
    "code": code_scorer,
}
