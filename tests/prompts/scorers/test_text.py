from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import UsageError
from crossroads.prompts.scorers import final_letter, final_number, normalise_answer, parse_scorer

SCORERS = ("exact", "contains", "numeric", "numeric:0.5", "choice")


@pytest.mark.parametrize(
    ("scorer", "answer", "references", "score"),
    [
        ("exact", " Paris. ", ["paris"], 1),
        ("exact", "It is Paris", ["Paris"], 0),
        ("exact", "NYC", ["New York", "nyc"], 1),
        ("contains", "The capital of France is Paris.", ["Paris"], 1),
        ("contains", "Parisian", ["Paris"], 0),
        ("contains", "It is carbon-dioxide!", ["carbon dioxide"], 1),
        ("contains", "", ["Paris"], 0),
        ("contains", "anything", ["?"], 0),
        ("numeric", "23 + 48 = 71", ["71"], 1),
        ("numeric", "71.0", ["71"], 1),
        ("numeric", "seventy one", ["71"], 1),
        ("numeric", "no idea", ["71"], 0),
        ("numeric", "1,200", ["1200"], 1),
        ("numeric", "about 0.3333333333", ["1/3"], 1),
        ("numeric", "0.33", ["1/3"], 0),
        ("numeric:0.02", "0.33", ["1/3"], 1),
        ("numeric:0.01", "8.05 km", ["8.04672"], 1),
        ("numeric:0.01", "-40 degrees", ["-40"], 1),
        ("numeric:0.01", "40 degrees", ["-40"], 0),
        ("numeric", "0", ["0"], 1),
        ("choice", "B", ["B"], 1),
        ("choice", "The answer is (c).", ["C"], 1),
        ("choice", "A is wrong, so the answer is D", ["A"], 0),
        ("choice", "nothing fits", ["A"], 0),
    ],
)
def test_examples(scorer: str, answer: str, references: list[str], score: float) -> None:
    assert parse_scorer(scorer)(answer, references) == score


@given(st.sampled_from(SCORERS), st.text(), st.lists(st.text(), max_size=3))
def test_every_scorer_stays_between_zero_and_one(
    scorer: str, answer: str, references: list[str]
) -> None:
    assert parse_scorer(scorer)(answer, references) in {0.0, 1.0}


@given(st.text())
def test_what_is_exact_is_contained(text: str) -> None:
    if normalise_answer(text):
        assert parse_scorer("exact")(text, [text]) == 1
        assert parse_scorer("contains")(f"so: {text}!", [text]) == 1


@given(st.integers(-(10**9), 10**9))
def test_a_whole_number_is_found_however_it_is_given(number: int) -> None:
    for text in (f"{number}", f"{number:,}", f"The answer is {number}.", f"= **{number}**"):
        assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("There are 60 minutes in 1 hour.", 60),
        ("5 miles is 8.05 kilometers", "8.05"),
        ("first 5, then 7", 7),
        ("x = 3.", 3),
        ("3/4", "3/4"),
        (".5", "0.5"),
        ("none", None),
        ("9" * 5000, None),
    ],
)
def test_the_number_a_text_settles_on(text: str, number: int | str | None) -> None:
    assert final_number(text) == (None if number is None else Fraction(number))


@pytest.mark.parametrize(
    ("text", "letter"),
    [("b)", "B"), ("(C) Paris", "C"), ("Answer: **d**", "D"), ("I pick B", "B"), ("word", None)],
)
def test_the_letter_a_text_settles_on(text: str, letter: str | None) -> None:
    assert final_letter(text) == letter


def test_an_unknown_scorer_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown scorer 'exakt'; did you mean 'exact'"):
        parse_scorer("exakt")


@pytest.mark.parametrize("scorer", ["numeric:x", "numeric:-1", "numeric:1", "numeric:nan"])
def test_a_tolerance_is_a_share(scorer: str) -> None:
    with pytest.raises(UsageError, match="expected numeric:TOLERANCE"):
        parse_scorer(scorer)


def test_other_scorers_take_no_argument() -> None:
    with pytest.raises(UsageError, match="exact takes no argument"):
        parse_scorer("exact:1")
