"""Regular expressions that a request can be held against without being held up.

Python's matcher backtracks: a pattern such as ``(a+)+$`` takes time exponential in the text, and
nothing can interrupt it. Patterns are therefore read before they are used. Inside an unbounded
repetition nothing may vary in length, and alternatives must each begin with another letter. What
is left takes at most about ``f * n ** (k + 1)`` steps on n characters, with k unbounded
repetitions and f ways through the optional parts and alternatives, so the text is cut to the
length for which that stays below ``_STEPS``. Possessive repetitions (``.*+``) and atomic groups
never backtrack and are not counted.
"""

from __future__ import annotations

import re
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from crossroads.core.errors import InputError

_STEPS = 1_000_000  # about ten milliseconds at worst
_LONGEST = 4_000  # characters
_LEAST = 64  # characters: a pattern that may read fewer is of no use
_MANY = 16  # repetitions from which a bound is no bound
_BACKTRACKING = (ops.MAX_REPEAT, ops.MIN_REPEAT)


class Pattern:
    """A guarded pattern; ``length`` characters of a text are read."""

    def __init__(self, text: str, *, where: str) -> None:
        try:
            self._search = re.compile(text).search
            tree = parser.parse(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(f"{where}: {text!r:.60} is no regular expression: {error}") from error
        num_loops, num_ways = _effort(tree, f"{where}: {text!r:.60}", is_inside=False)
        self.length = min(_LONGEST, int((_STEPS / num_ways) ** (1 / (num_loops + 1))))
        if self.length < _LEAST:
            raise InputError(
                f"{where}: {text!r:.60} has so many repetitions and optional parts that it can "
                "take forever; make some of them possessive, such as .*+ or a?+"
            )

    def found_in(self, text: str) -> bool:
        """Whether the pattern occurs in the part of the text that is read."""
        return self._search(text, 0, self.length) is not None


def _effort(tree: Any, what: str, *, is_inside: bool) -> tuple[int, float]:
    """Return the number of unbounded repetitions, and of ways through all else that varies.

    ``is_inside`` tells that the tree is itself repeated. Raises InputError for what may not be.
    """
    loops, ways = 0, 1.0
    for op, argument in tree:
        parts, inside = _parts(op, argument), is_inside
        if op in _BACKTRACKING:
            low, high, _ = argument
            if is_inside and low != high:
                raise InputError(
                    f"{what} repeats what varies in length, which can take forever; "
                    "make the inner part possessive, such as (?:a++)+"
                )
            if high is ops.MAXREPEAT or high - low >= _MANY:
                loops, inside = loops + 1, True
            else:
                ways *= high - low + 1
        elif op is ops.BRANCH and not _are_distinct(argument[1]):
            if is_inside:
                raise InputError(
                    f"{what} repeats alternatives that can begin alike, which can take forever; "
                    "let each begin with a letter of its own, or use an atomic group"
                )
            ways *= len(argument[1])
        elif op in (ops.POSSESSIVE_REPEAT, ops.ATOMIC_GROUP):
            inside = False
        for part in parts:
            more_loops, more_ways = _effort(part, what, is_inside=inside)
            loops, ways = loops + more_loops, ways * more_ways
    return loops, min(ways, float(_STEPS))


def _parts(op: Any, argument: Any) -> list[Any]:
    """Return the patterns inside one."""
    if op is ops.BRANCH:
        return list(argument[1])
    values = argument if isinstance(argument, tuple) else (argument,)
    return [part for part in values if isinstance(part, parser.SubPattern)]


def _are_distinct(branches: Any) -> bool:
    """Whether every alternative begins with a letter that no other begins with, in either case."""
    firsts = [branch[0] if len(branch) else None for branch in branches]
    letters = [
        chr(first[1]).casefold()
        for first in firsts
        if first is not None and first[0] is ops.LITERAL
    ]
    return len(letters) == len(set(letters)) == len(branches)
