from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.logs import inspect, read_logs
from crossroads.prompts.readers import read_outcomes
from tests.prompts.logs.written import (
    inspect_log,
    inspect_sample,
    write_inspect_eval,
    write_inspect_json,
)


def test_a_log_becomes_a_table_with_tokens_times_and_texts(tmp_path: Path) -> None:
    samples = [inspect_sample("a", "C", choices=["x", "y"]), inspect_sample(2, "I")]
    table = read_outcomes(write_inspect_json(tmp_path / "log.json", samples))
    assert table.prompt_ids.tolist() == ["trivia/a", "trivia/2"]
    assert table.models == ("openai/big",)
    assert table.score.tolist() == [[1], [0]]
    assert table.texts is not None and table.texts.tolist() == ["What is a?", "What is 2?"]
    assert table.domain is not None and table.domain.tolist() == ["trivia", "trivia"]
    assert table.input_tokens is not None and table.input_tokens.tolist() == [[15], [15]]
    assert table.output_tokens is not None and table.output_tokens.tolist() == [[4], [4]]
    assert table.latency_s is not None and table.latency_s.tolist() == [[0.5], [0.5]]
    assert table.chance is not None and table.chance[0] == 0.5 and np.isnan(table.chance[1])
    assert table.source == "logs of Inspect (trivia: match)"


@pytest.mark.parametrize("zstandard", [False, True])
def test_the_archive_holds_the_same_as_the_json(tmp_path: Path, zstandard: bool) -> None:
    samples = [inspect_sample(n, "CI"[n % 2]) for n in range(3)]
    plain = read_logs([write_inspect_json(tmp_path / "log.json", samples)])
    packed = read_logs([write_inspect_eval(tmp_path / "log.eval", samples, zstandard=zstandard)])
    assert packed.prompt_ids.tolist() == plain.prompt_ids.tolist()
    assert packed.score.tolist() == plain.score.tolist()
    assert packed.source == plain.source


@pytest.mark.parametrize(
    ("value", "score"),
    [
        *[("C", 1), ("I", 0), ("P", 0.5), ("N", 0), ("yes", 1), ("False", 0), ("0.25", 0.25)],
        *[(True, 1), (0, 0), (0.75, 0.75), (math.nan, None)],
    ],
)
def test_a_value_counts_as_in_inspects_own_metrics(
    tmp_path: Path, value: Any, score: float | None
) -> None:
    samples = [inspect_sample(1, value), inspect_sample(2, "C")]
    found = read_logs([write_inspect_json(tmp_path / "log.json", samples)]).score[0, 0]
    assert np.isnan(found) if score is None else found == score


def test_epochs_are_averaged_and_failed_samples_have_no_score(tmp_path: Path) -> None:
    samples = [
        inspect_sample("a", "C"),
        inspect_sample("a", "I", epoch=2),
        inspect_sample("a", "C", epoch=3, error={"message": "boom"}),
        inspect_sample("b", "C", invalidation={"reason": "leak"}),
        inspect_sample("c", None),
    ]
    table = read_logs([write_inspect_eval(tmp_path / "log.eval", samples)])
    assert table.prompt_ids.tolist() == ["trivia/a", "trivia/b", "trivia/c"]
    assert table.score[0, 0] == 0.5
    assert np.isnan(table.score[1:, 0]).all()


def test_a_metric_of_several_values_is_chosen_by_name(tmp_path: Path) -> None:
    scores = {"judge": {"value": {"style": 0.25, "truth": "C"}}, "match": {"value": "I"}}
    path = write_inspect_json(tmp_path / "l.json", [inspect_sample(1, None, scores=scores)])
    assert inspect.read_log(path).metric == "judge.style"
    for metric, score in (("judge.truth", 1), ("judge.style", 0.25), ("match", 0)):
        assert read_logs([path], metric=metric).score.tolist() == [[score]]
    with pytest.raises(
        InputError, match=r"no metric 'judge'; it has: judge\.style, judge\.truth, match"
    ):
        read_logs([path], metric="judge")


@pytest.mark.parametrize("value", [7, -0.5, "maybe", [1, 0]])
def test_a_value_that_is_no_share_is_refused(tmp_path: Path, value: Any) -> None:
    path = write_inspect_json(tmp_path / "log.json", [inspect_sample(1, value)])
    with pytest.raises(
        InputError, match=r"sample 1: metric 'match': expected a number in \[0, 1\]"
    ):
        read_logs([path])


def test_costs_in_the_log_are_the_tables(tmp_path: Path) -> None:
    usage = {"openai/big": {"input_tokens": 1, "output_tokens": 1, "total_cost": 0.25}}
    path = write_inspect_json(tmp_path / "l.json", [inspect_sample(1, "C", model_usage=usage)])
    table = read_logs([path])
    assert table.cost is not None and table.cost.tolist() == [[0.25]]


def test_a_conversation_is_its_last_question_and_takes_its_working_time(tmp_path: Path) -> None:
    messages = [{"role": "assistant", "content": "hm"}] * 2
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "attachment://ab"}]
    given = {"input": chat, "messages": messages, "attachments": {"ab": "long question"}}
    path = write_inspect_json(tmp_path / "l.json", [inspect_sample(1, "C", **given)])
    table = read_logs([path])
    assert table.texts is not None and table.texts.tolist() == ["long question"]
    assert table.latency_s is not None and table.latency_s.tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"version": 2, "status": "success", "eval": {', "not JSON"),
        ('{"version": 2, "status": "success", "eval": {"task": "t"}}', "not a log of Inspect"),
        ('{"version": 2, "status": "error", "eval": {"task": "t", "model": "m"}}', "no samples"),
    ],
)
def test_a_damaged_log_is_one_error(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(content, "utf-8")
    with pytest.raises(InputError, match=told) as wrong:
        read_logs([path])
    assert "\n" not in str(wrong.value)
    assert "log.json" in str(wrong.value)


def test_an_archive_that_is_none_or_damaged_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "log.eval"
    path.write_bytes(b"PK nothing")
    with pytest.raises(InputError, match="not a readable zip archive"):
        read_logs([path])
    write_inspect_eval(path, [inspect_sample(1, "C")], zstandard=True)
    whole = bytearray(path.read_bytes())
    at = whole.index(b"\x28\xb5\x2f\xfd") + 20  # inside the first frame
    whole[at] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(InputError, match="not a readable zip archive"):
        read_logs([path])


def test_a_table_of_ones_own_is_no_log(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"eval": 1}', "utf-8")
    assert not inspect.is_log(path)
    assert inspect_log(None)["version"] == 2
