"""Numbers as people write them, read and written exactly."""

from __future__ import annotations

import re
from fractions import Fraction

_SMALL = {
    **{"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7},
    **{"eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13},
    **{"fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18},
    **{"nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60},
    **{"seventy": 70, "eighty": 80, "ninety": 90},
}
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_DIGITS = re.compile(r"-?(?:0|[1-9][0-9]*|[1-9][0-9]{0,2}(?:,[0-9]{3})+)?(?:\.[0-9]+)?")
_MAX_DIGITS = 40

NUMBER_WORDS = frozenset({*_SMALL, "hundred", *_LARGE})


def read_digits(text: str) -> Fraction | None:
    """Read ``12``, ``1,200``, ``-0.5`` or ``.5``; None for anything else, such as ``007``."""
    if not _DIGITS.fullmatch(text) or not text.strip("-") or len(text) > _MAX_DIGITS:
        return None
    return Fraction(text.replace(",", ""))


def read_words(words: list[str]) -> Fraction | None:
    """Read ``three hundred and five`` (as a list of words); None if it is no number.

    >>> read_words("two thousand three hundred and five".split())
    Fraction(2305, 1)
    """
    total = group = 0
    previous = ""
    for word in words:
        if word in _SMALL:
            tens_before_ones = _SMALL.get(previous, 0) >= 20 and 0 < _SMALL[word] < 10
            if previous in _SMALL and not tens_before_ones:
                return None
            group += _SMALL[word]
        elif word == "hundred" and 0 < group < 100 and previous != "hundred":
            group *= 100
        elif word in _LARGE and group:
            total, group = total + group * _LARGE[word], 0
        elif word != "and" or previous not in {"hundred", *_LARGE}:
            return None
        previous = word
    return None if not words or previous == "and" else Fraction(total + group)


def write_number(value: Fraction, *, significant: int = 10) -> str:
    """Write a number exactly where its decimals end soon, else rounded and marked ``about``.

    >>> write_number(Fraction(5, 4)), write_number(Fraction(2, 3))
    ('1.25', 'about 0.6666666667')
    """
    if value.denominator == 1:
        return str(value.numerator)
    twos, rest = _remove_factor(value.denominator, 2)
    fives, rest = _remove_factor(rest, 5)
    places = max(twos, fives)
    if rest == 1 and places <= 12:
        return _decimal(value, places)
    return f"about {round_off(value, significant)}"


def round_off(value: Fraction, significant: int = 10) -> str:
    """Write a number with this many significant digits, without an exponent or trailing zeros."""
    magnitude = len(str(abs(value.numerator))) - len(str(value.denominator))
    places = max(0, significant - magnitude)
    text = _decimal(round(value, places), places)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _decimal(value: Fraction, places: int) -> str:
    scaled = abs(value.numerator) * 10**places // value.denominator
    digits = str(scaled).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-places]}.{digits[-places:]}" if places else f"{sign}{digits}"


def _remove_factor(number: int, factor: int) -> tuple[int, int]:
    count = 0
    while number % factor == 0:
        number //= factor
        count += 1
    return count, number
