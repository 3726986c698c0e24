from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossroads.prompts.routerarena.evaluation import EvaluationSet
from crossroads.prompts.routerarena.submission import INDEX, Submission
from crossroads.prompts.routerarena.validate import (
    SubmissionError,
    check_submission,
    problems_of,
)
from tests.prompts.routerarena.toy import toy_live, toy_replay, toy_submission

GOLDEN = Path(__file__).parents[2] / "golden" / "routerarena_problems.txt"
RESULT = {
    "generated_answer": "\\boxed{A}",
    "success": True,
    "token_usage": {"input_tokens": 10, "output_tokens": 2},
}


def everything_wrong(evaluation: EvaluationSet) -> Submission:
    """One of every mistake."""
    rows = evaluation.rows

    def entry(n: int, **changes: Any) -> dict[str, Any]:
        right = {
            INDEX: rows[n].global_index,
            "prompt": rows[n].prompt,
            "prediction": "small",
            "generated_result": RESULT,
        }
        return {**right, **changes}

    return Submission(
        config={
            "router_name": "../up",
            "models": ["small", "Small", "large-v2", "larg"],
            "decision_ms": -1,
            "remarks": "none",
        },
        predictions=[
            entry(0),
            entry(0),
            entry(1, prompt="What else?"),
            entry(2, prediction="large"),
            entry(3, prediction=None),
            entry(4, cost=-0.5, for_optimality="yes"),
            entry(0, **{INDEX: "Toy_99"}),
            entry(4, generated_result=None),
            entry(4, generated_result={"success": True, "token_usage": {"input_tokens": -1}}),
            entry(1, generated_result={"generated_answer": "x"}, for_optimality=True),
            entry(1, for_optimality=True),
            entry(4, generated_result={"success": False, "error": "timeout"}),
            "not an object",
        ],
        robustness=[
            {INDEX: "Toy_0", "kind": "typo", "prediction": "small"},
            {INDEX: "Toy_0", "kind": "typo", "prediction": "small"},
            {INDEX: "Toy_0", "kind": "pun", "prediction": "huge"},
            7,
        ],
    )


def test_every_problem_is_listed_as_in_the_golden_file() -> None:
    found = problems_of(everything_wrong(toy_live()), toy_live(), results=True)
    assert "\n".join(found) + "\n" == GOLDEN.read_text("utf-8")


def test_an_unusable_config_is_told_too() -> None:
    submission = Submission(config={"models": "small"}, predictions=[])
    found = problems_of(submission, toy_replay())
    assert found[0].startswith("config: router_name None")
    assert found[1].startswith("config: models: expected a list of names, got 'small'")
    assert found[2] == "predictions: expected 6 rows, got 0"


def test_a_right_submission_has_no_problem() -> None:
    for evaluation in (toy_replay(), toy_live()):
        check_submission(toy_submission(evaluation), evaluation)


def test_results_are_demanded_on_a_live_board_only() -> None:
    live, replay = toy_live(), toy_replay()
    assert len(problems_of(toy_submission(live), live, results=True)) == 6
    assert problems_of(toy_submission(replay), replay, results=True) == []


@pytest.mark.parametrize("model", ["large-v2", "larg", "my-small", "smal l"])
def test_a_name_that_resembles_a_known_one_is_unknown(model: str) -> None:
    evaluation = toy_replay()
    submission = toy_submission(evaluation, models=("small", model))
    with pytest.raises(SubmissionError, match="no price is known") as refused:
        check_submission(submission, evaluation)
    assert len(refused.value.problems) == 1


def test_canonical_spelling_is_enough() -> None:
    evaluation = toy_replay()
    check_submission(toy_submission(evaluation, models=("SMALL", " large")), evaluation)


def test_the_error_tells_the_first_problem_and_how_many_more() -> None:
    evaluation = toy_replay()
    submission = replace(toy_submission(evaluation), predictions=[])
    with pytest.raises(SubmissionError, match=r"expected 6 rows, got 0 \(and 6 more\)"):
        check_submission(submission, evaluation)
