from __future__ import annotations

import pytest

from crossroads.gateway.caches.word_order import (
    content_words,
    is_same_order,
    with_words,
    without_words,
)


def same(one: str, other: str) -> bool:
    found = is_same_order(content_words(one), content_words(other))
    assert found is is_same_order(content_words(other), content_words(one))
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Convert euros to dollars", "Convert dollars to euros"),
        ("Did Alice lend money to Bob?", "Did Bob lend money to Alice?"),
        ("buy or sell when it goes up", "sell or buy when it goes down"),
        ("\u0435\u0432\u0440\u043e \u0438\u043b\u0438 \u0440\u0443\u0431\u043b\u044c",
         "\u0440\u0443\u0431\u043b\u044c \u0438\u043b\u0438 \u0435\u0432\u0440\u043e"),
        ("red fish, blue fish", "red blue fish"),
    ],
)  # fmt: skip
def test_shared_words_in_another_order_or_number_are_another_text(one: str, other: str) -> None:
    assert not same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of France?", "what's the capital of france"),
        ("Is Python faster than Java?", "Is Python faster than Java, please?"),
        ("Could you tell me the capital of France", "Give me the capital of France"),
        ("one text", "of wholly other words"),
        ("", "anything"),
    ],
)
def test_other_plain_words_and_other_signs_make_no_difference(one: str, other: str) -> None:
    assert same(one, other)


def test_words_travel_with_the_answer() -> None:
    words = content_words("euros into dollars")
    assert without_words(with_words(words, b"an answer")) == (words, b"an answer")
    assert without_words(with_words(b"", b"x")) == (b"", b"x")
