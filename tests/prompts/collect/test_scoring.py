"""Judges, and answers that cannot be scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts import scorers
from crossroads.prompts.collect import CollectSettings, PromptItem, collect, estimate, read_prompts
from crossroads.prompts.pool import Pool
from crossroads.prompts.readers import read_outcomes
from tests.prompts.collect.replies import Replies
from tests.prompts.collect.test_calls import items, pool_of

QUICK = CollectSettings(backoff=0.001)
GRADE = "Reasons.\nscore: 0.5"


def judged(grade: str) -> Any:
    return lambda body: grade if body["model"] == "judge" else "an answer"


def refusing(body: dict[str, Any]) -> str | web.Response:
    """Answer every prompt and grade nothing."""
    is_grading = "You grade" in body["messages"][0]["content"]
    return web.Response(status=400) if is_grading else "an answer"


def test_a_judge_grades_with_question_references_and_answer_before_it(tmp_path: Path) -> None:
    with Replies(judged(GRADE)) as upstream:
        pool = pool_of(upstream, "a", "judge", price_out=1000.0)
        one = items(1, scorer="judge:judge")
        report = collect(pool, one, tmp_path / "o.csv", settings=QUICK)
        grading = [b for b in upstream.asked("judge") if "Grade" in b["messages"][-1]["content"]]
        assert len(grading) == 2  # of a's answer, and of the judge's own
        shown = grading[0]["messages"][1]["content"]
        assert all(text in shown for text in ("question 0", "yes", "an answer"))
        assert grading[0]["temperature"] == 0
    assert report.models["a"]["score"] == 0.5
    assert report.judges == {"judge": {"num_grades": 2, "cost": pytest.approx(0.02)}}
    assert report.is_complete
    cost = read_outcomes(tmp_path / "o.csv").cost
    assert cost is not None
    assert cost.tolist() == [[pytest.approx(0.01)] * 2]  # of the answers alone


@pytest.mark.parametrize("said", ["I like it.", "score: 7", ""])
def test_a_grade_that_cannot_be_read_leaves_the_cell_without_a_score(
    tmp_path: Path, said: str
) -> None:
    out = tmp_path / "o.jsonl"
    with Replies(judged(said)) as upstream:
        mixed = [*items(1, scorer="judge:judge")]
        mixed.append(PromptItem(prompt_id="x", prompt="x", references=("an answer",)))
        pool = pool_of(upstream, "a", "judge")
        report = collect(pool, mixed, out, settings=QUICK)
        assert {(f.prompt_id, f.model) for f in report.unscored} == {("p0", "a"), ("p0", "judge")}
        assert "stated no score" in report.unscored[0].error
        assert not report.is_complete
        rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
        assert [row["score"] for row in rows if row["prompt_id"] == "p0"] == [None, None]
        asked = len(upstream.requests)
        collect(pool, mixed, out, settings=QUICK)
        assert len(upstream.requests) == asked  # paid already, and kept


def test_a_judge_that_fails_is_asked_again_by_the_next_run_and_only_the_judge(
    tmp_path: Path,
) -> None:
    out = tmp_path / "o.csv"
    with Replies(refusing) as upstream:
        pool = pool_of(upstream, "a", "judge")
        one = [PromptItem(prompt_id="p", prompt="q", references=("r",), scorer="judge:judge")]
        first = collect(pool, one, out, settings=QUICK)
        assert first.models["a"]["score"] is None
        assert "gave no grade" in first.unscored[0].error
        assert first.out is None
        upstream.reply = judged(GRADE)
        second = collect(pool, one, out, settings=QUICK)
        assert (second.models["a"]["score"], second.is_complete) == (0.5, True)
        assert len(upstream.asked("a")) == 1


def test_equal_answers_to_one_prompt_are_graded_once(tmp_path: Path) -> None:
    with Replies(lambda body: GRADE) as upstream:
        pool = pool_of(upstream, "a", "b", "judge")
        report = collect(pool, items(1, scorer="judge:judge"), tmp_path / "o.csv", settings=QUICK)
        assert report.judges["judge"]["num_grades"] == 1
        assert len(upstream.requests) == 3 + 1


def test_a_judge_that_is_not_in_the_pool_is_refused_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    with Replies(judged(GRADE)) as upstream:
        with pytest.raises(UsageError, match="unknown model 'jugde'; did you mean 'judge'"):
            collect(pool_of(upstream, "judge"), items(1, scorer="judge:jugde"), tmp_path / "o.csv")
        assert upstream.requests == []


def test_a_judge_counts_in_the_estimate(tmp_path: Path) -> None:
    with Replies(judged(GRADE)) as upstream:
        pool = pool_of(upstream, "a", "judge", price_out=1.0)
        found = estimate(pool, items(2, scorer="judge:judge"), tmp_path / "o.csv")
        # its own two answers, two grades of "a" and two of itself
        assert found.models["judge"]["num_calls"] == 6
        assert found.models["a"]["num_calls"] == 2


def test_a_scorer_that_cannot_say_leaves_the_cell_without_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(answer: str, references: Any) -> float:
        raise scorers.ScoringError("too strange")

    monkeypatch.setitem(scorers._SCORERS, "picky", lambda argument: refuse)
    with Replies(judged(GRADE)) as upstream:
        mixed = [
            *items(1, scorer="picky"),
            PromptItem(prompt_id="x", prompt="x", references=("y",)),
        ]
        report = collect(pool_of(upstream, "a"), mixed, tmp_path / "o.csv", settings=QUICK)
    assert [(f.prompt_id, f.error) for f in report.unscored] == [("p0", "too strange")]
    assert report.models["a"]["score"] == 0


def test_the_unit_of_a_pool_is_the_tables(tmp_path: Path) -> None:
    with Replies(judged(GRADE)) as upstream:
        pool = pool_of(upstream, "a", price_per_call=2.0)
        euros = Pool(cost_unit="EUR", models=pool.models)
        report = collect(euros, items(1), tmp_path / "o.csv", settings=QUICK)
    table = read_outcomes(tmp_path / "o.csv")
    assert (report.cost_unit, table.cost_unit) == ("EUR", "EUR")


def test_scorers_of_a_prompts_file_are_checked_with_their_arguments(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    row = {"prompt_id": "a", "prompt": "x", "reference": "assert 1 | 2"}
    path.write_text(json.dumps({**row, "scorer": "code:5"}), "utf-8")
    assert read_prompts(path)[0].references == ("assert 1 | 2",)  # bars belong to the code
    path.write_text(json.dumps({**row, "scorer": "judge:m"}), "utf-8")
    assert read_prompts(path)[0].references == ("assert 1", "2")
    for scorer, told in (
        ("judge", "expected judge:MODEL"),
        ("regex:(", "not a regular expression"),
        ("code:0", "expected code:SECONDS"),
    ):
        path.write_text(json.dumps({**row, "scorer": scorer}), "utf-8")
        with pytest.raises(InputError, match=f"row 1: column 'scorer': .*{told}"):
            read_prompts(path)
