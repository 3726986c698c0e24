from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import UsageError
from crossroads.prompts.scorers import judge_of, parse_scorer
from crossroads.prompts.scorers.judge import judge_messages, parse_grade


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("score: 1", 1),
        ("Good.\nScore: 0.5", 0.5),
        ("**Score:** 8/10", 0.8),
        ("**Score: 0.25**", 0.25),
        ('{"score": 0.75}', 0.75),
        ("score = 80%", 0.8),
        ("SCORE - 1.0", 1),
        ("score: .5", 0.5),
        ("score: 3 out of 4", 0.75),
        ("score: 0 would be harsh\nscore: 1", 1),
        ("score: 7", None),
        ("score: -1", None),
        ("score: 1/0", None),
        ("score: 9/5", None),
        ("1", None),
        ("I like it", None),
        ("", None),
    ],
)
def test_the_last_stated_grade_counts(text: str, grade: float | None) -> None:
    assert parse_grade(text) == grade


@given(st.text())
def test_a_grade_is_a_share_or_nothing(text: str) -> None:
    grade = parse_grade(text)
    assert grade is None or 0 <= grade <= 1


@given(st.text(max_size=30), st.text(max_size=30), st.lists(st.text(max_size=9), max_size=2))
def test_an_answer_cannot_close_its_own_quotation(
    prompt: str, answer: str, references: list[str]
) -> None:
    system, user = judge_messages(prompt, answer, references)
    assert "score: x" in system["content"]
    closing = user["content"].splitlines()[-3]
    assert closing.startswith("</answer ")
    assert closing not in answer
    assert answer in user["content"]


def test_a_judge_names_its_model_and_needs_a_pool() -> None:
    assert judge_of("judge:a:b") == "a:b"
    assert judge_of("exact") is None
    with pytest.raises(UsageError, match="expected judge:MODEL"):
        judge_of("judge")
    with pytest.raises(UsageError, match="a judge is a model of a pool"):
        parse_scorer("judge:m")
