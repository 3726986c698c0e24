"""A calculator for questions in words or symbols.

The whole question must be arithmetic: every word of it is either part of the sum or of a known way
of asking for one. Anything else is declined, so that a question that merely holds numbers ("how
many sides has a triangle?") is never answered with a wrong sum.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from crossroads.prompts.experts.arithmetic import (
    NotArithmeticError,
    Token,
    UndefinedError,
    evaluate,
)
from crossroads.prompts.experts.numerals import NUMBER_WORDS, read_digits, read_words, write_number

REFUSAL = "I can only do arithmetic."

_MAX_CHARACTERS = 300

# Ways of asking, removed from both ends of the question as often as they occur.
_OPENING = re.compile(
    r"(?:hi|hello|hey|please|kindly|quick question|question|so|now|raise|"
    r"(?:can|could|would) you|(?:help me|tell me|give me)(?! to)|"
    r"i (?:need|want)(?: to know| you to)?|do you know|"
    r"what(?: is| are|'s)|how (?:much|many) (?:is|are)|"
    r"calculate|compute|work out|evaluate|solve|find|simplify|determine|"
    r"what (?:do|would|will) (?:you|i|we) get|what happens|(?:when|if) (?:you|i|we)|if|"
    r"(?:value|result) of|answer to|the|what)(?![a-z])[\s,:!]*"
)
_ENDING = re.compile(
    r"[\s,:;]*(?:"
    r"(?<![a-z])(?:please|thanks|thank you|exactly|in total|altogether|equals?|equal to|is|makes?|"
    r"what|what do (?:you|i|we) get|what is (?:it|that|the (?:answer|result))|"
    r"(?:(?:give|reply with|answer with) )?(?:just|only) (?:the )?(?:number|answer|result))|"
    r"[?.=!:])$"
)

# Words to symbols, in this order: longer phrases before their parts.
_PHRASES: Sequence[tuple[str, str]] = (
    (r"(?:raised )?to (?:the )?power(?: of)?", "^"),
    (r"multiplied (?:by|with)|times", "*"),
    (r"divided by|over", "/"),
    (r"plus|added to", "+"),
    (r"minus|take away", "-"),
    (r"(?:more|greater) than", "more"),
    (r"(?:less|fewer) than", "fewer"),
    (r"less", "-"),
    (r"modulo|modulus", "mod"),
    (r"percent|per cent", "%"),
    (r"(?:square root|sqrt)(?: of)?", "sqrt"),
    (r"(?:cube root|cbrt)(?: of)?", "cbrt"),
    (r"square of", "square"),
    (r"cube of", "cube"),
    (r"factorial of", "factorial"),
    (r"(?:sum|total) of", "sum"),
    (r"product of", "product"),
    (r"difference (?:between|of)", "difference"),
    (r"quotient of", "quotient"),
    (r"(?:arithmetic mean|average|mean) of", "mean"),
    (r"(?:largest|biggest|greatest|maximum|max|highest) (?:number )?(?:of|among)", "max"),
    (r"(?:smallest|least|minimum|min|lowest) (?:number )?(?:of|among)", "min"),
    (r"(?:(?:greatest|highest) common (?:divisor|factor)|gcd|hcf)(?: of)?", "gcd"),
    (r"(?:(?:least|lowest|smallest) common multiple|lcm)(?: of)?", "lcm"),
    (r"remainder (?:when|if|of)", "remainder"),
    (r"twice", "double"),
    (r"thrice", "triple"),
    (r"the|away", ""),
)
_WORDS = [(re.compile(rf"(?<![a-z])(?:{words})(?![a-z])"), f" {to} ") for words, to in _PHRASES]
_SIGNS = str.maketrans(
    {"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-", "\u221a": " sqrt "}
    | {"\u2019": "'", "\u00b2": "^2", "\u00b3": "^3", '"': " ", "`": " "}
)
_TOKEN = re.compile(r"\s*([0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+|[a-z]+|\*\*|[-+*/^%!(),])")
_NAME = re.compile(r"[0-9]-[a-z]|[a-z]-[0-9]")  # Catch-22, 7-eleven
_SHARES = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "tenth": 10}
_SHARES |= {f"{word}s": share for word, share in _SHARES.items() if word != "half"}


def answer(question: str) -> str | None:
    """Return the value of the arithmetic in ``question``, or None if it holds anything else.

    >>> answer("What is 17 * 24?"), answer("12 percent of 250"), answer("Who wrote 1984?")
    ('408', '30', None)
    """
    if len(question) > _MAX_CHARACTERS:
        return None
    try:
        result = evaluate(read_question(question))
    except NotArithmeticError:
        return None
    except UndefinedError as error:
        return str(error)
    text = write_number(result.value)
    return text if result.is_exact or text.startswith("about") else f"about {text}"


def read_question(question: str) -> list[Token]:
    """Return the tokens of a question; raises NotArithmeticError for characters that are none."""
    text = question.translate(_SIGNS).casefold()
    if _NAME.search(text):
        raise NotArithmeticError
    text = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text)
    text = _without_framing(text)
    text = re.sub(r"(?<=[0-9)])\s*x\s*(?=[0-9(.])", "*", text)
    for words, symbol in _WORDS:
        text = words.sub(symbol, text)
    return _with_numbers(_split(text.rstrip()))


def _without_framing(text: str) -> str:
    before = None
    while text != before:
        before = text = text.strip()
        opening = _OPENING.match(text)
        text = text[opening.end() :] if opening else text
        if not re.search(r"[0-9)]!$", text):  # that one is a factorial
            text = _ENDING.sub("", text)
    return text


def _split(text: str) -> list[str]:
    tokens = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise NotArithmeticError
        tokens.append("^" if match.group(1) == "**" else match.group(1))
        position = match.end()
    return tokens


def _with_numbers(words: list[str]) -> list[Token]:
    """Replace digits, number words and shares (``three quarters of``) by their values."""
    tokens: list[Token] = []
    position = 0
    while position < len(words):
        word = words[position]
        end = _end_of_number(words, position)
        if end > position:
            tokens.append(_known(read_words(words[position:end])))
            position = end
            continue
        position += 1
        following = words[position] if position < len(words) else ""
        if word in {"a", "an"} and following in _SHARES:
            continue
        if word in _SHARES:
            if following != "of":
                raise NotArithmeticError
            many = tokens.pop() if tokens and isinstance(tokens[-1], Fraction) else Fraction(1)
            tokens.append(Fraction(many) / _SHARES[word])
        elif word == "of" and not (position > 1 and words[position - 2] in {"%", *_SHARES}):
            raise NotArithmeticError
        elif word[0].isdigit() or word[0] == ".":
            tokens += _read_digits(word)
        else:
            tokens.append(word)
    return tokens


def _end_of_number(words: list[str], start: int) -> int:
    """Return where the number words beginning at ``start`` end (``start`` if there are none)."""
    end = start
    while end < len(words):
        joins = words[end] == "and" and end > start and words[end - 1] in _BEFORE_AND
        following = words[end + 1] if end + 1 < len(words) else ""
        if words[end] not in NUMBER_WORDS and not (joins and following in NUMBER_WORDS):
            break
        end += 1
    return end


_BEFORE_AND = frozenset({"hundred", "thousand", "million", "billion"})


def _read_digits(text: str) -> list[Token]:
    """Read a number; commas that do not mark thousands part a list (``3,9,4``)."""
    whole = read_digits(text)
    if whole is not None:
        return [whole]
    tokens: list[Token] = []
    for part in re.findall(r"[^,]+|,", text):
        tokens.append("," if part == "," else _known(read_digits(part)))
    return tokens


def _known(value: Fraction | None) -> Fraction:
    if value is None:
        raise NotArithmeticError
    return value
