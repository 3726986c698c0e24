from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.routerarena.submission import (
    CONFIG,
    PREDICTIONS,
    read_submission,
    token_counts,
    write_submission,
)
from tests.prompts.routerarena.toy import toy_replay, toy_submission


def test_a_folder_reads_back_as_it_was_written(tmp_path: Path) -> None:
    submission = toy_submission(toy_replay(), decision_ms=0.5, remarks=["note"])
    write_submission(submission, tmp_path / "s")
    found = read_submission(tmp_path / "s")
    assert found == submission
    assert found.digest == submission.digest
    assert (found.decision_ms, found.remarks) == (0.5, ["note"])


def test_another_choice_or_another_name_is_another_submission() -> None:
    evaluation = toy_replay()
    one = toy_submission(evaluation)
    assert one.digest == toy_submission(evaluation).digest
    assert one.digest != toy_submission(evaluation, models=("large", "small")).digest
    assert one.digest != toy_submission(evaluation, router_name="other").digest


def test_predictions_are_not_overwritten(tmp_path: Path) -> None:
    write_submission(toy_submission(toy_replay()), tmp_path)
    with pytest.raises(InputError, match="exists; choose another folder"):
        write_submission(toy_submission(toy_replay()), tmp_path)


def test_the_published_wrapper_around_the_config_is_read(tmp_path: Path) -> None:
    write_submission(toy_submission(toy_replay()), tmp_path)
    wrapped = {"pipeline_params": {"router_name": "wrapped", "models": ["small"]}}
    (tmp_path / CONFIG).write_text(json.dumps(wrapped))
    assert read_submission(tmp_path).router_name == "wrapped"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (CONFIG, "[]", "expected an object, got list"),
        (CONFIG, '{"pipeline_params": 3}', "'pipeline_params' is no object"),
        (PREDICTIONS, "{}", "expected a list, got dict"),
        (PREDICTIONS, "[{", "cannot be read"),
        (PREDICTIONS, "[" * 100_000, "cannot be read"),
        (PREDICTIONS, None, "a submission needs it"),
    ],
)
def test_unreadable_files_are_named(
    tmp_path: Path, name: str, content: str | None, told: str
) -> None:
    write_submission(toy_submission(toy_replay()), tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=told):
        read_submission(tmp_path)


def test_a_missing_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--prepare"):
        read_submission(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"input_tokens": 3, "output_tokens": 4}, (3.0, 4.0)),
        ({"input_tokens": 3}, None),
        ({"input_tokens": -3, "output_tokens": 4}, None),
        ({"input_tokens": True, "output_tokens": 4}, None),
        ({"input_tokens": float("nan"), "output_tokens": 4}, None),
        ({"input_tokens": 10**400, "output_tokens": 4}, None),
        ("many", None),
        (None, None),
    ],
)
def test_token_counts_are_two_numbers_or_nothing(
    usage: object, expected: tuple[float, float] | None
) -> None:
    assert token_counts({"token_usage": usage}) == expected
