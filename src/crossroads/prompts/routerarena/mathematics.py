"""Whether two written results are the same number or expression.

Results are compared as text without what does not matter, then as exact numbers, then as formulas
by the scorer ``symbolic`` where ``sympy`` is installed; without it the last step is left out.
"""

from __future__ import annotations

import re
from fractions import Fraction

from crossroads.core.errors import MissingExtraError
from crossroads.prompts.scorers import parse_scorer

_LONGEST = 400  # characters: a result that goes on and on is no number
_TOLERANCE = Fraction(1, 10**6)
_NUMBER = re.compile(r"([-+]?)(\d+\.?\d*|\.\d+)(?:/(\d+\.?\d*))?")
_FRACTION = re.compile(r"([-+]?)\\frac\{([-\d.]+)\}\{([\d.]+)\}")
_UNIT = re.compile(r"(?<=[\d}])\s*\\text\s*\{[^{}]*\}\s*$")
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\(?:left|right|displaystyle|quad|[,;! ])")
_IGNORED = re.compile(r"\\?%|\\?\$|\^\\circ")


def same_result(found: str, wanted: str) -> bool:
    """Return whether two results agree as text, as numbers or as formulas."""
    left, right = normalise_result(found), normalise_result(wanted)
    if not left or not right:
        return False
    if left == right:
        return True
    numbers = exact_number(left), exact_number(right)
    if numbers[0] is not None and numbers[1] is not None:
        return abs(numbers[0] - numbers[1]) <= _TOLERANCE * abs(numbers[1])
    return _same_formula(found, wanted)


def normalise_result(text: str) -> str:
    """Strip what does not change a result: spaces, currency, units, LaTeX dressing, ``x =``.

    A percentage keeps its number: ``1.4%`` and ``1.4`` agree.
    """
    text = _UNIT.sub("", text.strip().rstrip("."))
    text = _SPACING.sub("", _TEXT.sub(r"\1", text))
    text = _IGNORED.sub("", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"^\s*[A-Za-z]\s*=\s*", "", text)
    return "".join(text.split()).casefold()


def exact_number(text: str) -> Fraction | None:
    """Return a decimal or a fraction of decimals as a number, None for anything else."""
    plain = _FRACTION.sub(r"\1\2/\3", text)
    match = _NUMBER.fullmatch(plain) if len(plain) <= _LONGEST else None
    if match is None:
        return None
    sign, above, below = match.groups()
    if below is not None and Fraction(below.rstrip(".")) == 0:
        return None
    value = Fraction(above.rstrip(".")) / (Fraction(below.rstrip(".")) if below else 1)
    return -value if sign == "-" else value


def _same_formula(found: str, wanted: str) -> bool:
    try:
        symbolic = parse_scorer("symbolic")
    except MissingExtraError:
        return False
    return symbolic(f"\\boxed{{{found}}}", [f"\\boxed{{{wanted}}}"]) == 1.0
