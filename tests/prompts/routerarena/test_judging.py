from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.routerarena import judging
from crossroads.prompts.routerarena.brought import estimated_tokens
from crossroads.prompts.routerarena.inference import Call, Result
from crossroads.prompts.routerarena.isolation import ScoringJob
from crossroads.prompts.routerarena.judging import (
    calls_of,
    choices_of,
    figures_of,
    judge_calls,
)
from crossroads.prompts.routerarena.submission import INDEX
from tests.prompts.routerarena.toy import toy_live, toy_replay, toy_submission


def result(answer: str = "\\boxed{A}", **changes: Any) -> Result:
    usage = {"input_tokens": 1000, "output_tokens": 0}
    return {"generated_answer": answer, "success": True, "token_usage": usage, **changes}


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[ScoringJob]:
    """Score in this process, by the letter, and remember the jobs."""
    seen: list[ScoringJob] = []

    def score(jobs: list[ScoringJob], **settings: Any) -> list[float]:
        seen.extend(jobs)
        return [1.0 if "A" in job.answer else 0.0 for job in jobs]

    monkeypatch.setattr(judging, "score_apart", score)
    return seen


def test_choices_are_in_the_rows_order_under_the_pools_names() -> None:
    evaluation = toy_replay()
    submission = toy_submission(evaluation, models=("SMALL", "Large"))
    reverse = replace(submission, predictions=list(reversed(submission.predictions)))
    assert choices_of(reverse, evaluation) == [
        (f"Toy_{n}", ("small", "large")[n % 2]) for n in range(6)
    ]


def test_entries_for_optimality_are_calls_but_no_choices() -> None:
    evaluation = toy_live()
    submission = toy_submission(evaluation)
    further = {**submission.predictions[0], "prediction": "large", "for_optimality": True}
    more = replace(submission, predictions=[*submission.predictions, further])
    assert len(choices_of(more, evaluation)) == 6
    assert calls_of(more, evaluation)[6:] == [("Toy_0", "large")]


def test_a_replay_knows_every_model_of_the_submission() -> None:
    evaluation = toy_replay()
    assert len(set(calls_of(toy_submission(evaluation), evaluation))) == 12


def test_an_answer_is_scored_once_unless_forced(tmp_path: Path, scored: list[ScoringJob]) -> None:
    evaluation, store = toy_live(), tmp_path / "scores.json"
    calls: dict[Call, Result] = {("Toy_0", "small"): result(), ("Toy_1", "small"): result()}
    judged, num_reused = judge_calls(calls, evaluation, store)
    assert (len(scored), num_reused) == (2, 0)
    calls["Toy_2", "large"] = result("\\boxed{B}")
    again, num_reused = judge_calls(calls, evaluation, store)
    assert (len(scored), num_reused) == (3, 2)
    assert again.score == {**judged.score, ("Toy_2", "large"): 0.0}
    _, num_reused = judge_calls(calls, evaluation, store, force=True)
    assert (len(scored), num_reused) == (6, 0)


@pytest.mark.usefixtures("scored")
def test_costs_are_tokens_at_the_pools_prices(tmp_path: Path) -> None:
    calls: dict[Call, Result] = {("Toy_0", "small"): result(), ("Toy_0", "large"): result()}
    judged, _ = judge_calls(calls, toy_live(), tmp_path / "s")
    assert judged.cost == {("Toy_0", "small"): 0.001, ("Toy_0", "large"): 0.01}


@pytest.mark.usefixtures("scored")
def test_a_failure_is_charged_like_the_models_other_calls(tmp_path: Path) -> None:
    failure = result("", success=False, token_usage=None)
    calls: dict[Call, Result] = {
        **{(f"Toy_{n}", "small"): result() for n in range(5)},
        ("Toy_5", "small"): failure,
        ("Toy_0", "large"): failure,
    }
    judged, _ = judge_calls(calls, toy_live(), tmp_path / "s")
    assert judged.cost["Toy_5", "small"] == pytest.approx(0.001)
    tokens = estimated_tokens(toy_live().rows[0].prompt)  # it never answered: its prompt at least
    assert judged.cost["Toy_0", "large"] == pytest.approx(10.0 * tokens / 1e6)
    figures = figures_of(toy_submission(toy_live(), models=("small",)), toy_live(), judged)
    assert figures["accuracy"] == pytest.approx(100 * 5 / 6)
    assert figures["cost_per_1k_usd"] == pytest.approx(1.0)
    assert figures["num_failed"] == 1
    assert figures["notes"] == ["1 rows have no answer and count as 0"]


@pytest.mark.parametrize("text", ["{", "[]", '{"key": "1"}', '{"key": NaN}'])
@pytest.mark.usefixtures("scored")
def test_damaged_scores_are_named(tmp_path: Path, text: str) -> None:
    store = tmp_path / "scores.json"
    store.write_text(text)
    calls: dict[Call, Result] = {("Toy_0", "small"): result()}
    with pytest.raises(InputError, match=r"scores\.json: damaged .*; delete it"):
        judge_calls(calls, toy_live(), store)
    judge_calls(calls, toy_live(), store, force=True)  # needs none of them


def replayed(models: tuple[str, ...], tmp_path: Path, **config: Any) -> dict[str, Any]:
    evaluation = toy_replay()
    submission = toy_submission(evaluation, models=models, **config)
    results = {call: result() for call in calls_of(submission, evaluation)}
    judged, _ = judge_calls(results, evaluation, tmp_path / "s")
    return figures_of(submission, evaluation, judged)


def test_a_replay_takes_score_and_cost_from_its_table(tmp_path: Path) -> None:
    figures = replayed(("small", "large"), tmp_path, decision_ms=10.0, remarks=["mind this"])
    assert figures["accuracy"] == pytest.approx(100 * (1 + 0 + 0 + 1 + 0.5 + 0.25) / 6)
    assert figures["cost_per_1k_usd"] == pytest.approx(5.5)
    assert figures["optimality"]["all_solvable"]["num_rows"] == 5
    assert figures["optimality"]["router_correct"]["accuracy"] == 100
    assert figures["latency"] == {"decision_ms": 10.0, "score": pytest.approx(75)}
    assert figures["robustness"] is None
    assert figures["notes"] == ["mind this"]
    assert figures["breakdown"]["domain"]["a"] == {
        "accuracy": pytest.approx(1 / 3), "num_rows": 3,
    }  # fmt: skip
    assert set(figures["breakdown"]) == {"domain", "difficulty"}


def test_with_one_model_there_is_nothing_to_choose(tmp_path: Path) -> None:
    assert replayed(("large",), tmp_path)["optimality"] is None


def test_robustness_compares_with_the_clean_choice(tmp_path: Path) -> None:
    evaluation = toy_replay()
    again = [
        {INDEX: "Toy_0", "kind": "typo", "prediction": "Small"},
        {INDEX: "Toy_1", "kind": "typo", "prediction": "small"},
        {INDEX: "Toy_0", "kind": "grammar", "prediction": "small"},
    ]
    submission = replace(toy_submission(evaluation), robustness=again)
    results = {call: result() for call in calls_of(submission, evaluation)}
    judged, _ = judge_calls(results, evaluation, tmp_path / "s")
    assert figures_of(submission, evaluation, judged)["robustness"] == {
        "share": pytest.approx(200 / 3),
        "by_kind": {"grammar": 100.0, "typo": 50.0},
        "num_pairs": 3,
    }


def test_remarks_are_kept_apart_from_the_other_notes(tmp_path: Path) -> None:
    figures = replayed(("small", "large"), tmp_path, remarks=["mind this"])
    assert figures["remarks"] == ["mind this"]
    assert replayed(("small", "large"), tmp_path)["remarks"] == []
