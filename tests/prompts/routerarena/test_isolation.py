from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.routerarena import isolation
from crossroads.prompts.routerarena.isolation import (
    ScoringFailedError,
    ScoringJob,
    code_seconds,
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


def test_a_process_that_hangs_is_given_up_with_a_typed_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def hanging(*arguments: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "import time; time.sleep(20)"]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE))
        return started[-1]

    monkeypatch.setattr(isolation, "_start", hanging)
    monkeypatch.setattr(isolation, "_START_SECONDS", 0.1)
    monkeypatch.setattr(isolation, "_ROW_SECONDS", 0.0)
    with pytest.raises(ScoringFailedError, match=r"1 answers were not scored in .*; run it again"):
        score_apart([RIGHT])
    assert started[0].poll() is not None
    pipe = started[0].stderr
    assert pipe is not None and pipe.closed


def test_programs_have_their_runners_time() -> None:
    program = ScoringJob(metric="code_accuracy", answer="x", references=("t",))
    assert isolation._longest([RIGHT] * 10, "code:5") == 60 + 10
    assert isolation._longest([RIGHT, program], "code:300") == 60 + 2 + 300 + 60
    assert isolation._longest([program], "posixpath:join") == 60 + 1 + 60
    assert (code_seconds("code"), code_seconds("code:2.5")) == (10.0, 2.5)
    assert code_seconds("code:soon") == code_seconds("module:9") == 0


def test_runners_are_named_by_scorer_or_module() -> None:
    assert load_runner("") is None
    runner = load_runner("posixpath:join")
    assert runner is not None and runner("a", "b") == "a/b"
    for seconds in ("soon", "-1", "nan"):
        with pytest.raises(UsageError, match="expected code:SECONDS"):
            load_runner(f"code:{seconds}")
    for wrong in ("nothing_like_it:run", "posixpath:no_such", ":x"):
        with pytest.raises(UsageError, match="MODULE:FUNCTION"):
            load_runner(wrong)


@pytest.mark.slow
def test_the_librarys_own_code_scorer_runs_programs() -> None:
    runner = load_runner("code:5")
    assert runner is not None
    assert runner("def double(x):\n    return 2 * x", "assert double(2) == 4") == 1.0
    assert runner("def double(x):\n    return x", "assert double(2) == 4") == 0.0
    assert runner("fence = '```'\ndef f():\n    return fence * 2", "assert len(f()) == 6") == 1.0


@pytest.mark.slow
def test_a_right_program_with_fences_in_its_texts_is_right_all_the_way() -> None:
    answer = "So:\n```python\ns = '```'\ndef f():\n    return s\n```\nDone."
    job = ScoringJob(
        metric="code_accuracy", answer=answer, references=("assert f() == 3 * chr(96)",)
    )
    assert score_apart([job], code_runner="code") == [1]


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
