from __future__ import annotations

from collections.abc import Iterator

import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.scorers import ScoringError, parse_scorer, regex, worker


@pytest.fixture(scope="module", autouse=True)
def _one_worker() -> Iterator[None]:
    yield
    worker.shared_worker().close()


@pytest.mark.parametrize(
    ("scorer", "answer", "references", "score"),
    [
        (r"regex:Answer: (\w+)", "Answer: b, no. Answer: Paris!", ["paris"], 1),
        (r"regex:Answer: (\w+)", "Answer: Paris. Answer: b", ["paris"], 0),
        (r"regex:Answer: (\w+)", "Paris", ["paris"], 0),
        (r"regex:\d+", "7 then 42", ["41", "42"], 1),
        (r"regex:a|b", "b", ["b"], 1),
        (r"regex:(?P<x>z)?y", "y", ["z"], 0),
        ("regex", "It took 42 days", [r"\b4\d\b"], 1),
        ("regex", "It took 52 days", [r"\b4\d\b", "weeks"], 0),
    ],
)
def test_examples(scorer: str, answer: str, references: list[str], score: float) -> None:
    assert parse_scorer(scorer)(answer, references) == score


def test_a_catastrophic_pattern_ends_and_the_next_one_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(regex, "SECONDS", 0.2)
    score = parse_scorer("regex:(a+)+$")
    with pytest.raises(ScoringError, match=r"'\(a\+\)\+\$' took more than 0\.2 s; simplify it"):
        score("a" * 64 + "b", ["a"])
    monkeypatch.undo()
    assert score("baa", ["aa"]) == 1


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match=r"scorer 'regex:\(': not a regular expression"):
        parse_scorer("regex:(")
    with pytest.raises(ScoringError, match="failed"):
        parse_scorer("regex")("answer", ["("])
