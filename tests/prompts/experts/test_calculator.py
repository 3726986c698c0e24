from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts.experts.calculator import answer


@pytest.mark.parametrize(
    ("question", "value"),
    [
        ("What is 23 + 48?", "71"),
        ("17 * 24", "408"),
        ("12 percent of 250", "30"),
        ("square root of 144", "12"),
        ("What is the square root of 2?", "about 1.4142135624"),
        ("Please calculate 7 x 8.", "56"),
        ("What is 7 \u00d7 8?", "56"),
        ("\u221a81", "9"),
        ("5\u00b2 - 1", "24"),
        ("seven plus eight", "15"),
        ("What is one hundred and five minus twenty-three?", "82"),
        ("What is the sum of 4, 5, and 6?", "15"),
        ("largest of 3,9,4", "9"),
        ("take 8 away from 21", "13"),
        ("21 take away 8", "13"),
        ("raise 2 to the power of 8", "256"),
        ("the remainder when 29 is divided by 4", "1"),
        ("What is 15 more than 27?", "42"),
        ("9 less than 20", "11"),
        ("three quarters of 80", "60"),
        ("a third of 27", "9"),
        ("twice 17", "34"),
        ("reduce 50 by 10%", "45"),
        ("5!", "120"),
        ("(3+4)*5 = ?", "35"),
        ("If you multiply 6 by 7, what do you get?", "42"),
        ("Can you tell me what 5 factorial is?", "120"),
        ("1,200 + 300", "1500"),
        ("1/3 + 1/6", "0.5"),
        ("22/7", "about 3.142857143"),
        ("0.1 + 0.2", "0.3"),
        ("2 - -3", "5"),
        ("HELLO! WHAT IS 2 + 2, PLEASE?", "4"),
        ("What is 5 / 0?", "Division by zero is undefined."),
        ("9^9^9", "That number is too large to write out."),
    ],
)
def test_arithmetic_is_answered_exactly(question: str, value: str) -> None:
    assert answer(question) == value


@pytest.mark.parametrize(
    "question",
    [
        "",
        "?",
        "Who wrote 1984?",
        "What is 1984?",
        "What is five?",
        "How many sides has a triangle?",
        "What is 7-Eleven?",
        "Catch-22",
        "2024-11-05",
        "007 + 1",
        "What is the opposite of plus?",
        "half past 3",
        "50 Cent",
        "convert 5 miles to km",
        "What is 3 of 4?",
        "12 apples plus 3 apples",
        "If 2x + 3 = 7, what is x?",
        "What is 10 - 2 in binary?",
        "Is 7 + 5 more than 11?",
        "sum of one hundred and five",
        "__import__('os').system('true') + 1",
        "1 + " * 200 + "1",
        "What is 3 + \u0664?",
    ],
)
def test_anything_else_is_declined(question: str) -> None:
    assert answer(question) is None


@given(st.integers(-(10**9), 10**9), st.integers(0, 10**9))
def test_sums_and_products_of_any_size_are_right(a: int, b: int) -> None:
    assert answer(f"What is {a} + {b}?") == str(a + b)
    assert answer(f"{a} times {b}") == str(a * b)
    assert answer(f"Subtract {b} from {a}") == str(a - b)


@given(st.text(max_size=400))
def test_no_text_is_an_error(question: str) -> None:
    found = answer(question)
    assert found is None or found


@given(st.text("0123456789+-*/^%!().,x of", max_size=60))
def test_nothing_that_looks_like_arithmetic_is_an_error(question: str) -> None:
    found = answer(question)
    assert found is None or len(found) < 3000
