r"""Equality of formulas as mathematics: ``\frac{1}{2}``, ``0.5`` and ``50\%`` are one number.

Formulas become sympy objects through a parser of our own; sympy's own parsers evaluate text as
Python, which an answer must not reach. Two expressions are equal when they agree to 20 digits at
fixed points, which decides identities without a simplification that may never end; letters stand
for positive numbers, so that the square root of x^2 is x. Sizes are bounded before anything is
computed, and the whole comparison runs in the worker process under a time limit: an answer that
passes neither is not equal to its reference.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from crossroads.core.errors import MissingExtraError, UsageError
from crossroads.prompts.scorers.base import Scorer
from crossroads.prompts.scorers.latex import final_formula, without_text_commands
from crossroads.prompts.scorers.text import normalise_answer
from crossroads.prompts.scorers.worker import WorkerTimeoutError, shared_worker

SECONDS = 10.0  # a comparison takes milliseconds; a busy machine must not decide
_DIGITS = 30
_POINTS = ("0.7310585786", "1.6180339887", "2.2360679775")  # positive, of no special meaning


def symbolic_scorer(argument: str) -> Scorer:
    """Return the scorer ``symbolic``. Raises UsageError, MissingExtraError without sympy."""
    if argument:
        raise UsageError(f"scorer 'symbolic:{argument}': symbolic takes no argument")
    if importlib.util.find_spec("sympy") is None:
        raise MissingExtraError("sympy", extra="scorers")
    return symbolic


def symbolic(answer: str, references: Sequence[str]) -> float:
    """1 if the answer's final formula equals a reference."""
    found = final_formula(answer)
    return float(any(_matches(found, final_formula(reference)) for reference in references))


def _matches(found: str, wanted: str) -> bool:
    if not found or not wanted:
        return False
    if _folded(found) == _folded(wanted):
        return True
    try:
        return bool(shared_worker().ask("symbolic", [found, wanted], seconds=SECONDS))
    except (WorkerTimeoutError, ValueError):
        return False


def _folded(text: str) -> str:
    """Words compare as words; a formula keeps its signs."""
    bare = without_text_commands(text).strip()
    plain = "".join(bare.split())
    return normalise_answer(bare) if plain.rstrip(".").isalpha() else plain


def load() -> None:
    """Import sympy, in the worker, before any job is timed."""
    importlib.import_module("sympy")


def is_equal(found: str, wanted: str) -> bool:
    """Whether two formulas mean the same; runs in the worker. Raises FormulaError (a ValueError)
    where one is no formula or too large."""
    from crossroads.prompts.scorers.formula import parse_formula

    return _same(parse_formula(found), parse_formula(wanted))


def _same(left: Any, right: Any) -> bool:
    """Compare two values of ``parse_formula``: tuples by element, sets in any order."""
    if isinstance(left, frozenset | tuple) or isinstance(right, frozenset | tuple):
        if type(left) is not type(right) or len(left) != len(right):
            return False
        if isinstance(left, tuple):
            return all(_same(a, b) for a, b in zip(left, right, strict=True))
        return all(any(_same(a, b) for b in right) for a in left) and all(
            any(_same(a, b) for a in left) for b in right
        )
    if isinstance(left, str) or isinstance(right, str):
        return bool(left == right)
    return _agree(left, right)


def _agree(left: Any, right: Any) -> bool:
    import sympy

    if left.has(sympy.zoo, sympy.nan) or right.has(sympy.zoo, sympy.nan):
        return False  # a division by zero equals nothing
    if left == right:
        return True
    if (left.is_Rational and right.is_Rational) or left.has(sympy.oo) or right.has(sympy.oo):
        return False
    names = sorted(left.free_symbols | right.free_symbols, key=str)
    for shift in range(len(_POINTS) if names else 1):
        values = {
            name: sympy.Float(_POINTS[(shift + n) % len(_POINTS)], _DIGITS) + n // len(_POINTS)
            for n, name in enumerate(names)
        }
        a, b = (side.evalf(_DIGITS, subs=values) for side in (left, right))
        if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
            return False
        if abs(a - b) > sympy.Float("1e-20") * max(1, abs(a), abs(b)):
            return False
    return True
