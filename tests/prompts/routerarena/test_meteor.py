from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts.routerarena.meteor import meteor, words_of

WORDS = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=8).map(" ".join)


def test_the_formula_by_hand() -> None:
    # 3 of 4 words match a reference of 5: P = 3/4, R = 3/5, one chunk.
    mean = 10 * 0.75 * 0.6 / (0.6 + 9 * 0.75)
    assert meteor("on the mat today", "sat on the mat again") == pytest.approx(
        mean * (1 - 0.5 * (1 / 3) ** 3)
    )


def test_order_matters_through_chunks() -> None:
    assert meteor("the cat sat", "the cat sat") == 1
    assert meteor("sat cat the", "the cat sat") == pytest.approx(0.5)  # three chunks of three


def test_recall_weighs_more_than_precision() -> None:
    assert meteor("a b c d", "a b") > meteor("a b", "a b c d")


def test_nothing_in_common_is_zero() -> None:
    assert meteor("a", "b") == meteor("", "a") == meteor("a", "") == 0


@given(WORDS, WORDS)
def test_scores_are_shares_and_one_only_for_the_same_words(first: str, second: str) -> None:
    score = meteor(first, second)
    assert 0 <= score <= 1
    assert (score == 1) == (first == second)


def test_words_of_other_scripts() -> None:
    assert words_of("It's A-B, now!") == ["it", "s", "a", "b", "now"]
    assert words_of("\u5c06\u957f412\u7c73") == ["\u5c06", "\u957f", "412", "\u7c73"]
    assert words_of("\u0a97\u0ac5\u0a82\u0a97 \u0aae") == ["\u0a97\u0ac5\u0a82\u0a97", "\u0aae"]
