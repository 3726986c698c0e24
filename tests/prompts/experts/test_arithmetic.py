from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts.experts.arithmetic import (
    NotArithmeticError,
    Token,
    UndefinedError,
    evaluate,
)

NUMBERS = st.fractions(-1000, 1000, max_denominator=1000)
OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> tuple[list[Token], Fraction]:
    """A fully bracketed expression with its value."""
    if depth == 0 or draw(st.booleans()):
        number = draw(NUMBERS.map(abs))
        return [number], number
    left, a = draw(expressions(depth - 1))
    right, b = draw(expressions(depth - 1))
    sign = draw(st.sampled_from([s for s in OPERATIONS if s != "/" or b != 0]))
    return ["(", *left, sign, *right, ")"], OPERATIONS[sign](a, b)


@given(expressions())
def test_bracketed_expressions_are_exact(given_: tuple[list[Token], Fraction]) -> None:
    tokens, value = given_
    result = evaluate([*tokens, "+", Fraction(0)])
    assert result.is_exact
    assert result.value == value


@given(st.lists(st.tuples(st.sampled_from("+-*"), st.integers(0, 99)), min_size=1, max_size=8))
def test_precedence_is_that_of_mathematics(parts: list[tuple[str, int]]) -> None:
    tokens: list[Token] = [Fraction(7)]
    for sign, number in parts:
        tokens += [sign, Fraction(number)]
    # Digits and three signs only: Python's own evaluation is a safe reference here.
    expected = eval("7" + "".join(f"{sign}{number}" for sign, number in parts))
    assert evaluate(tokens).value == expected


@given(st.integers(0, 10**30), st.sampled_from(["sqrt", "cbrt"]))
def test_roots_of_powers_are_exact_and_others_are_marked(number: int, root: str) -> None:
    degree = 2 if root == "sqrt" else 3
    result = evaluate([root, Fraction(number**degree)])
    assert (result.value, result.is_exact) == (number, True)
    other = evaluate([root, Fraction(number**degree + 1)])
    if number > 0:
        assert not other.is_exact
        assert (
            abs(other.value**degree - number**degree - 1) < Fraction(1, 10**20) * (number + 1) ** 2
        )


@pytest.mark.parametrize(
    ("tokens", "value"),
    [
        ([2, "^", 3, "^", 2], 512),
        (["-", 2, "^", 2], -4),
        ([2, "^", "-", 2], Fraction(1, 4)),
        ([8, "^", "(", 2, "/", 3, ")"], 4),
        ([12, "%", "of", 250], 30),
        ([17, "%", 5], 2),
        ([50, "%"], Fraction(1, 2)),
        ([3, "!", "-", 1], 5),
        (["sum", 1, ",", 2, "and", 3], 6),
        (["max", "(", 4, ",", 9, ")"], 9),
        (["remainder", 29, "is", "/", 4], 1),
        (["difference", 3, "and", 10], 7),
        (["subtract", 7, "from", 30], 23),
        (["add", 1, ",", 2, ",", "and", 3], 6),
        (["increase", 80, "by", 25, "%"], 100),
        (["increase", 80, "by", 25], 105),
        ([9, "fewer", 20], 11),
        (["cbrt", "-", 27], -3),
        (["lcm", 4, "and", 6], 12),
    ],
)
def test_examples(tokens: list[str | int], value: int | Fraction) -> None:
    assert evaluate([t if isinstance(t, str) else Fraction(t) for t in tokens]).value == value


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        [5],
        ["+"],
        [5, "+"],
        [5, 5],
        ["(", 5, "+", 5],
        [5, "of", "x"],
        ["sum", 5],
        ["divide", 6, "by", 3, "by", 2],
        ["quotient", 6, ",", 3, ",", 2],
        ["add", 5],
        ["import", 5],
        ["remainder", 5, "+", 2],
    ],
)
def test_what_does_not_follow_the_grammar_is_no_arithmetic(tokens: list[str | int]) -> None:
    with pytest.raises(NotArithmeticError):
        evaluate([t if isinstance(t, str) else Fraction(t) for t in tokens])


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        ([1, "/", 0], "Division by zero"),
        ([5, "mod", 0], "Division by zero"),
        ([0, "^", "-", 1], "Division by zero"),
        (["sqrt", "-", 4], "not a real number"),
        ([9, "^", 9, "^", 9], "too large"),
        ([10**40, "^", 10**40], "too large"),
        ([401, "!"], "too large"),
        ([2, "^", 4096, "*", 2], "too large"),
        ([Fraction(1, 2), "!"], "whole numbers"),
        ([2, "^", Fraction(1, 5)], "whole powers"),
        (["gcd", Fraction(1, 2), "and", 3], "whole numbers"),
    ],
)
def test_values_that_do_not_exist_or_are_too_large_are_said_so(
    tokens: list[str | int | Fraction], told: str
) -> None:
    with pytest.raises(UndefinedError, match=told):
        evaluate([t if isinstance(t, str) else Fraction(t) for t in tokens])


@pytest.mark.parametrize("opening", ["(", "-", "sqrt", "double"])
def test_deep_nesting_is_refused_and_not_a_crash(opening: str) -> None:
    closing: list[Token] = [")"] * 100_000 if opening == "(" else []
    with pytest.raises(NotArithmeticError):
        evaluate([*[opening] * 100_000, Fraction(1), *closing])
