r"""From a formula as language models write it, in LaTeX or plain text, to tokens.

Nothing here is evaluated: ``tokens`` knows a fixed vocabulary and refuses everything else.
``final_formula`` finds what an answer settles on: its last ``\boxed{}``, else its last formula
between dollar signs, else what follows the last "answer is" or "=", else the whole text.
"""

from __future__ import annotations

import re

LONGEST = 400  # characters of a formula

_SPACING = re.compile(
    r"\\(?:left|right|displaystyle|bigl?|bigr?|Bigl?|Bigr?|limits|quad|qquad|circ)(?![A-Za-z])"
    r"|\\[,;:! ]|~|\{,\}|\^\{?\\circ\}?|\u00b0"
)
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|operatorname|mbox)\s*\{([^{}]*)\}")
_SIGNS = str.maketrans(
    {
        "\u2212": "-",
        "\u00d7": "*",
        "\u00b7": "*",
        "\u00f7": "/",
        "\u03c0": "\\pi ",
        "\u221a": "\\sqrt ",
        "\u221e": "\\infty ",
        "\u00b2": "^2",
        "\u00b3": "^3",
    }
)
_REPLACED = (
    ("\\dfrac", "\\frac"),
    ("\\tfrac", "\\frac"),
    ("\\cfrac", "\\frac"),
    ("\\dbinom", "\\binom"),
    ("\\cdot", "*"),
    ("\\times", "*"),
    ("\\div", "/"),
    ("\\%", "%"),
    ("\\$", ""),
    ("$", ""),
    ("**", "^"),
)
_THOUSANDS = re.compile(r"(?<![\d.,(\[])\d{1,3}(?:,\d{3})+(?![\d,])")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<command>\\[A-Za-z]+|\\[{}|])"
    r"|(?P<word>[A-Za-z]+(?:_\{?[A-Za-z0-9]+\}?)?)|(?P<sign>[-+*/^(){}\[\],=%!|_]))"
)
_DOLLARS = re.compile(r"\$\$?(.+?)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_STATED = re.compile(r"(?:answer|result|value)\s*(?:is|:|=)\s*:?\s*(.+)", re.IGNORECASE)


class FormulaError(ValueError):
    """A text is no formula of the vocabulary, or too large to be evaluated."""


def without_text_commands(text: str) -> str:
    r"""Replace ``\text{Paris}`` by its words."""
    return _TEXT.sub(r"\1", text)


def tokens(text: str) -> list[str]:
    """Split a formula into numbers, names, commands and signs. Raises FormulaError."""
    if len(text) > LONGEST:
        raise FormulaError(f"a formula of more than {LONGEST} characters")
    text = _SPACING.sub(" ", _TEXT.sub(_wording, text.translate(_SIGNS)))
    for old, new in _REPLACED:
        text = text.replace(old, new)
    text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text.strip().rstrip("."))
    found, end = [], 0
    while end < len(text):
        match = _TOKEN.match(text, end)
        if match is None:
            if not text[end:].strip():
                break
            raise FormulaError(f"no formula: {text[end : end + 20]!r}")
        found.append(match.group().strip())
        end = match.end()
    return found


def final_formula(answer: str) -> str:
    """Return the part of an answer that states its result."""
    boxed = _last_boxed(answer)
    if boxed is not None:
        return boxed
    spans = [next(filter(None, match)) for match in _DOLLARS.findall(answer)]
    if spans:
        return _right_side(spans[-1])
    lines = [line for line in answer.strip().splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    stated = _STATED.search(last)
    return _right_side(stated.group(1) if stated else last)


def _right_side(text: str) -> str:
    return text.rpartition("=")[2].strip() if "=" in text else text.strip()


def _last_boxed(answer: str) -> str | None:
    start = max(answer.rfind("\\boxed{"), answer.rfind("\\fbox{"))
    if start < 0:
        return None
    begin, depth = answer.index("{", start) + 1, 1
    for end in range(begin, len(answer)):
        depth += {"{": 1, "}": -1}.get(answer[end], 0)
        if depth == 0:
            return answer[begin:end]
    return None


def _wording(match: re.Match[str]) -> str:
    """Keep a single letter or number that was set as text; drop words such as units."""
    inner = match.group(1).strip()
    return inner if len(inner) == 1 or inner.replace(".", "", 1).isdigit() else " "
