"""A converter of units for questions in words.

Like the calculator it takes the whole question or declines it: a quantity, a known way of asking,
and a unit of the same dimension. Factors are exact fractions, so ``5 miles`` are ``8.04672
kilometers`` and nothing else; results without an end are rounded and marked ``about``.
"""

from __future__ import annotations

import re
from fractions import Fraction

from crossroads.prompts.experts.numerals import NUMBER_WORDS, read_digits, read_words, write_number
from crossroads.prompts.experts.unit_table import Unit, unit_spellings

REFUSAL = "I can only convert units."

_MAX_CHARACTERS = 200
_OPENING = re.compile(
    r"(?:hi|hello|hey|please|kindly|quick question|question|so|now|(?:can|could|would) you|"
    r"(?:help me|tell me|give me)(?! to)|i (?:need|want)(?: to know| you to)?|do you know|"
    r"convert|change|turn|express|rewrite|write|what(?: is| are|'s)|how much (?:is|are)|"
    r"how (?:long|far|tall|wide|deep|heavy|hot|cold|warm|fast|big|large) (?:is|are)|"
    r"calculate|compute|work out|"
    r"a (?:distance|length|mass|weight|speed|temperature|volume|area) of)"
    r"(?![a-z])[\s,:!]*"
)
_ENDING = re.compile(r"[\s,:;]*(?:(?<![a-z])(?:please|thanks|thank you|exactly)|[?.=!:])$")

_LINK = (
    r"(?:is|are|equals?|makes?|=|is equal to|is the same as|corresponds? to|to|into|in|as|"
    r"expressed in|measured in|converted (?:to|into))"
)
_TO = re.compile(rf"(?P<quantity>.+?) {_LINK} (?:how many |what in )?(?P<unit>.+)")
_HOW_MANY = re.compile(r"how many (?P<rest>.+)")
# Words that may stand between "how many <unit>" and the quantity, or after it.
_BETWEEN = re.compile(
    r"are|is|do|does|will|would|there|in|into|from|up|fit|go|makes?|equals?|to|you|get|have|has|"
    r"lasts?|contains?|holds?|takes?|corresponds?"
)
_SIGNS = str.maketrans(
    {"\u00b0": " degrees ", "\u2019": "'", "\u2212": "-", "\u00b2": "2", "\u00b3": "3"}
)
_QUANTITY = re.compile(r"(-?[0-9][0-9,]*(?:\.[0-9]+)?|-?\.[0-9]+)\s*(.+)")
_FRACTIONS = {"half": Fraction(1, 2), "quarter": Fraction(1, 4)}


def answer(question: str) -> str | None:
    """Return the converted quantity with its unit, or None if the question is anything else.

    >>> answer("Convert 5 miles to kilometres."), answer("How many minutes are in 2 hours?")
    ('8.04672 kilometers', '120 minutes')
    """
    if len(question) > _MAX_CHARACTERS:
        return None
    text = _without_framing(question.translate(_SIGNS).casefold())
    wanted = _how_many(text) or _to(text)
    if wanted is None:
        return None
    quantity, target = wanted
    base = _in_base_units(quantity, target)
    if base is None:
        return None
    return f"{write_number((base - target.offset) / target.factor)} {target.name}"


def _how_many(text: str) -> tuple[str, Unit] | None:
    """Read ``how many feet are there in 3 yards``: (quantity, target)."""
    match = _HOW_MANY.fullmatch(text)
    words = match["rest"].split() if match else []
    for count in range(min(3, len(words)), 0, -1):  # unit names have at most three words
        target = _unit(" ".join(words[:count]))
        if target is not None:
            rest = words[count:]
            while rest and _BETWEEN.fullmatch(rest[0]):
                rest = rest[1:]
            while rest and _BETWEEN.fullmatch(rest[-1]):
                rest = rest[:-1]
            return " ".join(rest), target
    return None


def _to(text: str) -> tuple[str, Unit] | None:
    """Read ``3 yards in feet``: (quantity, target)."""
    match = _TO.fullmatch(text)
    target = _unit(match["unit"]) if match else None
    return (match["quantity"], target) if match and target else None


def _without_framing(text: str) -> str:
    text = " ".join(text.split())
    before = None
    while text != before:
        before = text = text.strip()
        opening = _OPENING.match(text)
        text = text[opening.end() :] if opening else text
        text = _ENDING.sub("", text)
    return text


def _unit(text: str) -> Unit | None:
    text = text.strip().removeprefix("the ").removesuffix(" exactly")
    return unit_spellings().get(text)


def _in_base_units(text: str, target: Unit) -> Fraction | None:
    """Add up a quantity such as ``5 feet and 10 inches``, in the base unit of the target."""
    total = Fraction(0)
    parts = _parts(text)
    for number, unit in parts:
        if unit.dimension != target.dimension or (unit.offset and len(parts) > 1):
            return None
        total += number * unit.factor + unit.offset
    return total if parts else None


def _parts(text: str) -> list[tuple[Fraction, Unit]]:
    """Split a quantity into numbers with units; empty if any of it is something else."""
    whole = _one_part(text)
    if whole is not None:
        return [whole]
    pieces = re.split(r"(?:,? and |, | (?=[0-9]))", text)
    parts = [part for piece in pieces if (part := _one_part(piece)) is not None]
    return parts if len(parts) == len(pieces) > 1 else []


def _one_part(text: str) -> tuple[Fraction, Unit] | None:
    text = text.strip().removeprefix("the ")
    if match := _QUANTITY.fullmatch(text):
        number, rest = read_digits(match[1]), match[2]
    else:
        number, rest = _leading_words(text)
    unit = _unit(rest)
    return None if number is None or unit is None else (number, unit)


def _leading_words(text: str) -> tuple[Fraction | None, str]:
    """Read ``twenty five miles``, ``a mile``, ``half an hour``, ``minus forty degrees celsius``."""
    if text.startswith("minus "):
        rest_of = text.removeprefix("minus ")
        match = _QUANTITY.fullmatch(rest_of)
        number, rest = (read_digits(match[1]), match[2]) if match else _leading_words(rest_of)
        return (None if number is None else -number), rest
    words = text.replace("-", " ").split()
    if share := re.fullmatch(r"(?:a |one )?(half|quarter)(?: of)?(?: an?)? (.+)", text):
        return _FRACTIONS[share[1]], share[2]
    if words[:1] and words[0] in {"a", "an", "each", "every"}:
        return Fraction(1), " ".join(words[1:])
    count = 0
    while count < len(words) and words[count] in {*NUMBER_WORDS, "and"}:
        count += 1
    return read_words(words[:count]), " ".join(words[count:])
