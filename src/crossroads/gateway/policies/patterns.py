"""Regular expressions that a request can be held against without being held up.

Python's matcher backtracks: a pattern such as ``(a+)+$`` takes time exponential in the text, and
nothing can interrupt it. Patterns are therefore read before they are used. A repetition inside an
unbounded repetition is refused, and so are alternatives in one unless each begins with another
letter. What is left takes at most about ``n ** (k + 1)`` steps on n characters with k unbounded
repetitions, so the text is cut to the length for which that stays below ``_STEPS``. Possessive
repetitions (``.*+``) and atomic groups never backtrack and are not counted.
"""

from __future__ import annotations

import re
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from crossroads.core.errors import InputError

_STEPS = 4_000_000  # a few tens of milliseconds at worst
_LONGEST = 4_000  # characters
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
        num_loops = _count_loops(tree, where, text, is_inside=False)
        self.length = min(_LONGEST, int(_STEPS ** (1 / (num_loops + 1))))

    def found_in(self, text: str) -> bool:
        """Whether the pattern occurs in the part of the text that is read."""
        return self._search(text, 0, self.length) is not None


def _count_loops(tree: Any, where: str, text: str, *, is_inside: bool) -> int:
    """Return the number of unbounded repetitions. Raises InputError for nested ones."""
    count = 0
    for op, argument in tree:
        if op in _BACKTRACKING:
            low, high, body = argument
            is_loop = high is ops.MAXREPEAT or high - low >= _MANY
            if is_loop and is_inside:
                raise InputError(
                    f"{where}: {text!r:.60} repeats a repetition, which can take forever; "
                    "make one of them possessive, such as (?:a++)+"
                )
            count += is_loop + _count_loops(body, where, text, is_inside=is_inside or is_loop)
        elif op is ops.BRANCH:
            branches = argument[1]
            if is_inside and not _are_distinct(branches):
                raise InputError(
                    f"{where}: {text!r:.60} repeats alternatives that can begin alike, which can "
                    "take forever; let each begin with a letter of its own, or use an atomic group"
                )
            count += sum(_count_loops(b, where, text, is_inside=is_inside) for b in branches)
        elif op is ops.POSSESSIVE_REPEAT:
            count += _count_loops(argument[2], where, text, is_inside=False)
        elif op is ops.ATOMIC_GROUP:
            count += _count_loops(argument, where, text, is_inside=False)
        else:
            count += sum(
                _count_loops(part, where, text, is_inside=is_inside)
                for part in (argument if isinstance(argument, tuple) else (argument,))
                if isinstance(part, parser.SubPattern)
            )
    return count


def _are_distinct(branches: Any) -> bool:
    """Whether every alternative begins with a letter that no other begins with."""
    firsts = [branch[0] if len(branch) else None for branch in branches]
    letters = [first[1] for first in firsts if first is not None and first[0] is ops.LITERAL]
    return len(letters) == len(set(letters)) == len(branches)
