from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts.experts.numerals import read_digits, read_words, round_off, write_number


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("12", 12), ("1,200", 1200), ("1,234,567.5", "1234567.5"), ("-0.25", "-0.25")],
)
def test_digits_are_read(text: str, value: int | str) -> None:
    assert read_digits(text) == Fraction(value)


@pytest.mark.parametrize("text", ["", "-", "007", "1,20", "12,000,0", "1.", "1.2.3", "x", "1e5"])
def test_what_is_no_plain_number_is_not_read(text: str) -> None:
    assert read_digits(text) is None


@given(st.integers(0, 10**12))
def test_digits_with_and_without_commas_agree(number: int) -> None:
    assert read_digits(f"{number:,}") == read_digits(str(number)) == number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("zero", 0),
        ("twenty five", 25),
        ("one hundred and five", 105),
        ("nine hundred ninety nine thousand nine hundred and ninety nine", 999_999),
        ("two million three", 2_000_003),
        ("two thousand and six", 2006),
    ],
)
def test_number_words_are_read(text: str, value: int) -> None:
    assert read_words(text.split()) == value


@pytest.mark.parametrize(
    "text", ["", "and", "five and", "and five", "five six", "twenty ten", "hundred", "five dogs"]
)
def test_what_is_no_number_in_words_is_not_read(text: str) -> None:
    assert read_words(text.split()) is None


@given(st.fractions(max_denominator=10**6))
def test_a_written_number_is_exact_or_marked(value: Fraction) -> None:
    text = write_number(value)
    rounded = re.fullmatch(r"about (-?[0-9]+(?:\.[0-9]+)?)", text)
    if rounded is None:
        assert Fraction(text) == value
    else:
        assert abs(Fraction(rounded[1]) - value) <= abs(value) / 10**8 + Fraction(1, 10**8)


@pytest.mark.parametrize(
    ("value", "text"),
    [("5/4", "1.25"), ("-1/8", "-0.125"), ("2/3", "about 0.6666666667"), ("300", "300")],
)
def test_examples_of_written_numbers(value: str, text: str) -> None:
    assert write_number(Fraction(value)) == text


def test_large_numbers_are_rounded_without_an_exponent() -> None:
    assert round_off(Fraction(10**30, 7)).isdigit()
    assert write_number(Fraction(10**30, 7)).startswith("about 14285714285714")
