from __future__ import annotations

import sys
from pathlib import Path

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.routerarena import isolation
from crossroads.prompts.routerarena.isolation import (
    ScoringFailedError,
    ScoringJob,
    score_apart,
)
from crossroads.prompts.routerarena.worker import load_runner, main

RIGHT = ScoringJob(metric="mcq_accuracy", answer="\\boxed{A}", references=("0",))
WRONG = ScoringJob(metric="mcq_accuracy", answer="\\boxed{B}", references=("0",))


def test_scores_come_back_in_order_from_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_ROWS_PER_PROCESS", 4)
    jobs = [RIGHT, WRONG, WRONG, RIGHT, RIGHT, ScoringJob(metric="recorded", recorded=0.25)]
    assert score_apart(jobs, num_processes=2) == [1, 0, 0, 1, 1, 0.25]
    assert score_apart([]) == []


def test_the_process_sees_neither_the_submitters_code_nor_its_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    for name in ("sitecustomize.py", "usercustomize.py", "orjson.py", "crossroads.py"):
        (tmp_path / name).write_text(planted)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "crossroads.py"))
    assert score_apart([RIGHT]) == [1]
    assert not (tmp_path / "ran").exists()


def test_an_answer_is_data_not_code(tmp_path: Path) -> None:
    answer = f"\\boxed{{__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()}}"
    job = ScoringJob(metric="exact_match", answer=answer, references=("x",))
    assert score_apart([job]) == [0]
    assert not (tmp_path / "ran").exists()


def test_what_cannot_be_scored_is_told() -> None:
    with pytest.raises(InputError, match="--code-runner"):
        score_apart([ScoringJob(metric="code_accuracy", answer="x", references=("t",))])


def test_a_process_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "WORKER", "crossroads.no_such_module")
    with pytest.raises(ScoringFailedError, match="ended with code 1"):
        score_apart([RIGHT])


def test_runners_are_named_by_scorer_or_module() -> None:
    assert load_runner("") is None
    runner = load_runner("posixpath:join")
    assert runner is not None and runner("a", "b") == "a/b"
    for wrong in ("nothing_like_it:run", "posixpath:no_such", ":x"):
        with pytest.raises(UsageError, match="MODULE:FUNCTION"):
            load_runner(wrong)


@pytest.mark.slow
def test_the_librarys_own_code_scorer_runs_programs() -> None:
    runner = load_runner("code:5")
    assert runner is not None
    assert runner("def double(x):\n    return 2 * x", "assert double(2) == 4") == 1.0
    assert runner("def double(x):\n    return x", "assert double(2) == 4") == 0.0


def test_the_worker_reads_and_writes_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["worker"])
    job = '{"metric":"%s","answer":"\\\\boxed{A}","references":["A"],"recorded":null}\n'
    (tmp_path / "jobs.jsonl").write_text(job % "mcq_accuracy")
    assert main() == 0
    assert (tmp_path / "scores.json").read_text() == "[1.0]"
    (tmp_path / "jobs.jsonl").write_text(job % "no_such_metric")
    assert main() == 1
    assert capsys.readouterr().err.startswith("error: unknown metric")
