from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.adapters.collection.rows import (
    Row,
    divided,
    fingerprint,
    pick,
    place,
    published,
    side,
)


def _rows(count: int) -> list[Row]:
    return [Row(prompt=f"question {n}", answer=" yes") for n in range(count)]


@given(st.text())
def test_a_place_does_not_depend_on_case_or_spaces_around_words(text: str) -> None:
    words = text.split()
    # Upper case is not undone by folding for a few characters outside of ASCII.
    written = text.upper() if text.isascii() else text
    assert place(text) == place("  ".join(words)) == place(written)
    assert 0 <= place(text) < 1


@given(st.text(), st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_text_has_one_side_and_a_larger_test_share_keeps_its_test_texts(
    text: str, small: float, more: float
) -> None:
    if side(text, test=small) == "test":
        assert side(text, test=small + more) == "test"


def test_shares_are_about_what_was_asked_for() -> None:
    found = divided(((row.prompt, row) for row in _rows(4000)), test=0.2, most=4000)
    assert sum(map(len, found.values())) == 4000
    assert abs(len(found["test"]) - 800) < 100  # four standard deviations
    assert abs(len(found["validation"]) - 200) < 60


def test_the_same_question_lies_on_one_side_under_any_key_order() -> None:
    rows = [*_rows(50), *_rows(50)]
    found = divided(((row.prompt, row) for row in rows), most=100)
    prompts = [{row.prompt for row in part} for part in found.values()]
    assert not set.intersection(*prompts[:2]) and not set.intersection(*prompts[1:])


def test_published_parts_lose_questions_of_earlier_parts() -> None:
    rows = _rows(6)
    shouted = Row(prompt="QUESTION 0", answer=" no")
    found = published(rows[:3], [rows[3], rows[1]], [rows[4], rows[3], shouted], most=10)
    assert {row.prompt for row in found["train"]} == {"question 0", "question 1", "question 2"}
    assert [row.prompt for row in found["validation"]] == ["question 3"]
    assert [row.prompt for row in found["test"]] == ["question 4"]


def test_without_a_validation_part_some_training_rows_become_it() -> None:
    found = published(_rows(400), [], [], most=400)
    assert len(found["train"]) + len(found["validation"]) == 400
    assert 0 < len(found["validation"]) < 60


def test_the_first_rows_are_a_sample_that_does_not_depend_on_the_files_order() -> None:
    rows = _rows(100)
    one = divided(((row.prompt, row) for row in rows), most=10)
    other = divided(((row.prompt, row) for row in reversed(rows)), most=10)
    assert one == other
    assert [row.prompt for row in one["train"]] != [row.prompt for row in rows[:10]]


@given(st.lists(st.text(), unique=True, min_size=1, max_size=8), st.text(), st.data())
def test_picks_are_different_choices_and_repeat(
    choices: list[str], text: str, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(choices)))
    found = pick(choices, count, text)
    assert len(set(found)) == count and set(found) <= set(choices)
    assert found == pick(choices, count, text)


def test_more_picks_than_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot pick 2 of 1"):
        pick(["a"], 2, "text")


def test_the_right_option_is_found_by_its_text() -> None:
    assert Row(prompt="p", answer=" b", options=(" a", " b")).right == 1
    assert Row(prompt="p", answer=" b").right == -1


@given(st.permutations(range(4)))
def test_a_fingerprint_sees_every_change_of_order(order: list[int]) -> None:
    rows = _rows(4)
    same = order == sorted(order)
    assert (fingerprint(rows) == fingerprint(rows[n] for n in order)) is same
