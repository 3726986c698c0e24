"""Scorers that compare words, numbers and letters.

Where a prompt has several references, any of them will do. ``contains`` forgives an answer that
names several candidates; prefer ``exact`` or ``choice`` where that matters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

from crossroads.prompts.experts.numerals import NUMBER_WORDS, read_words

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_NUMBER = rf"[-+]?(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)(?:/[1-9][0-9]*)?"
_LONGEST_NUMBER = 2000  # characters: a model that repeats a digit for ever gives no number
_ANY_NUMBER = re.compile(_NUMBER)
_FINAL_NUMBER = re.compile(
    rf"(?:=|\b(?:is|are|equals|answer|about|approximately))\W{{0,4}}?(?P<number>{_NUMBER})",
    re.IGNORECASE,
)
_FINAL_LETTER = re.compile(
    r"(?:answer|option|choice)(?:\s+is)?\W{0,4}(?P<letter>[A-Za-z])(?![A-Za-z'])", re.IGNORECASE
)
_FIRST_LETTER = re.compile(r"\W{0,3}(?P<letter>[A-Za-z])(?:[).:\]*]|\s*$)")
_LONE_LETTER = re.compile(r"(?<![A-Za-z'])(?P<letter>[A-Z])(?![A-Za-z'])")


def exact(answer: str, references: Sequence[str]) -> float:
    """1 if the normalised answer equals a normalised reference."""
    return float(normalise_answer(answer) in {normalise_answer(text) for text in references})


def contains(answer: str, references: Sequence[str]) -> float:
    """1 if a normalised reference occurs in the normalised answer as whole words."""
    padded = f" {normalise_answer(answer)} "
    wanted = [normalise_answer(text) for text in references]
    return float(any(f" {text} " in padded for text in wanted if text))


def numeric(answer: str, references: Sequence[str], *, tolerance: float = 0.0) -> float:
    """1 if the answer's final number is within ``tolerance`` (relative) of a reference."""
    found = final_number(answer)
    if found is None:
        return 0.0
    for text in references:
        wanted = final_number(text)
        slack = Fraction(tolerance) + Fraction(1, 10**9)  # decimals that were cut short
        if wanted is not None and abs(found - wanted) <= slack * abs(wanted):
            return 1.0
    return 0.0


def choice(answer: str, references: Sequence[str]) -> float:
    """1 if the letter the answer settles on is a reference."""
    letter = final_letter(answer)
    return float(letter is not None and letter in {text.strip().upper() for text in references})


def final_number(text: str) -> Fraction | None:
    """Return the number a text settles on: after the last "=" or "is", else the last one.

    Digits, decimals, thousands commas, fractions (``3/4``) and, where there are no digits at all,
    number words.
    """
    stated = [match["number"] for match in _FINAL_NUMBER.finditer(text)]
    found = stated or [match.group() for match in _ANY_NUMBER.finditer(text)]
    found = [number for number in found if len(number) <= _LONGEST_NUMBER]
    if found:
        return Fraction(found[-1].replace(",", ""))
    return _number_in_words(text)


def final_letter(text: str) -> str | None:
    """Return the option letter an answer settles on, in upper case, None if there is none."""
    matches = list(_FINAL_LETTER.finditer(text))
    first = _FIRST_LETTER.match(text)
    if not matches and first:
        matches = [first]
    matches = matches or list(_LONE_LETTER.finditer(text))
    return matches[-1]["letter"].upper() if matches else None


def normalise_answer(text: str) -> str:
    """Fold case and width, drop punctuation, and put single spaces between words."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w\s]|_", " ", folded).split())


def _number_in_words(text: str) -> Fraction | None:
    words = normalise_answer(text).split()
    for end in range(len(words), 0, -1):
        start = end
        while start > 0 and words[start - 1] in NUMBER_WORDS:
            start -= 1
        if start < end:
            return read_words(words[start:end])
    return None
