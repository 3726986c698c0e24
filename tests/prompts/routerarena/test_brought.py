from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossroads.prompts.routerarena.brought import (
    believed,
    estimated_tokens,
    given_results,
    is_estimated,
)
from crossroads.prompts.routerarena.cache import ResponseCache
from crossroads.prompts.routerarena.evaluation import EvaluationSet
from crossroads.prompts.routerarena.inference import Result
from tests.prompts.routerarena.toy import toy_live, toy_replay, toy_submission

CALL = ("Toy_0", "small")
ANSWER = "It is the first: \\boxed{A}"


def result(read: float | None, written: float | None, **changes: Any) -> Result:
    usage = {"input_tokens": read, "output_tokens": written}
    return {"generated_answer": ANSWER, "success": True, "token_usage": usage, **changes}


def counts(found: Result) -> tuple[float, float]:
    return found["token_usage"]["input_tokens"], found["token_usage"]["output_tokens"]


def estimate(evaluation: EvaluationSet) -> tuple[float, float]:
    return estimated_tokens(evaluation.rows[0].prompt), estimated_tokens(ANSWER)


def test_a_replay_takes_no_result_from_a_submission() -> None:
    submission = toy_submission(toy_replay())
    bold = {**submission.predictions[0], "generated_result": result(1, 1), "accuracy": 1.0}
    assert given_results(replace(submission, predictions=[bold]), toy_replay()) == {}
    assert given_results(replace(submission, predictions=[bold]), toy_live()) == {
        CALL: result(1, 1)
    }


def test_a_count_below_the_texts_is_not_believed_and_a_larger_one_is(tmp_path: Path) -> None:
    evaluation = toy_live()
    read, written = estimate(evaluation)
    assert (read, written) == (-(-len(evaluation.rows[0].prompt) // 4), -(-len(ANSWER) // 4))
    for claimed, charged in (
        ((0, 1), (read, written)),
        ((5000, 1), (5000, written)),
        ((1, 700), (read, 700)),
    ):
        found = believed({CALL: result(*claimed)}, evaluation, tmp_path, chosen={CALL})[CALL]
        assert counts(found) == charged
        assert is_estimated(found)
        assert found["generated_answer"] == ANSWER


def test_further_answers_cannot_be_made_dear(tmp_path: Path) -> None:
    evaluation = toy_live()
    found = believed({CALL: result(9000, 9000)}, evaluation, tmp_path, chosen=())[CALL]
    assert counts(found) == estimate(evaluation)


def test_the_boards_own_counts_win_for_the_very_same_answer(tmp_path: Path) -> None:
    evaluation = toy_live()
    ResponseCache(tmp_path, "small").put("Toy_0", evaluation.rows[0].prompt, result(3, 2))
    found = believed({CALL: result(0, 1)}, evaluation, tmp_path, chosen={CALL})[CALL]
    assert counts(found) == (3, 2)
    assert not is_estimated(found)
    other = result(0, 1, generated_answer="\\boxed{A}")
    found = believed({CALL: other}, evaluation, tmp_path, chosen={CALL})[CALL]
    assert is_estimated(found)


@pytest.mark.parametrize("read", [None, 0])
def test_a_failure_that_is_brought_along_has_no_price_of_its_own(
    tmp_path: Path, read: int | None
) -> None:
    failure = result(read, 0, success=False)
    found = believed({CALL: failure}, toy_live(), tmp_path, chosen={CALL})[CALL]
    assert found["token_usage"] is None


def test_an_answer_kept_without_counts_is_estimated(tmp_path: Path) -> None:
    evaluation = toy_live()
    ResponseCache(tmp_path, "small").put("Toy_0", evaluation.rows[0].prompt, result(None, None))
    found = believed({CALL: result(0, 0)}, evaluation, tmp_path, chosen={CALL})[CALL]
    assert counts(found) == estimate(evaluation)
