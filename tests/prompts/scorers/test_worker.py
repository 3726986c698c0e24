from __future__ import annotations

import threading

import pytest

from crossroads.prompts.scorers import ScoringError
from crossroads.prompts.scorers.worker import Worker, WorkerTimeoutError


def test_many_threads_share_one_worker_without_mixing_their_answers() -> None:
    worker, found = Worker(), {}

    def ask(n: int) -> None:
        found[n] = worker.ask("regex", [r"\d+", f"x{n}y"], seconds=30)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.close()
    assert found == {n: str(n) for n in range(8)}


def test_a_late_worker_is_replaced_and_closing_twice_is_fine() -> None:
    worker = Worker()
    with pytest.raises(WorkerTimeoutError, match=r"no result within 0\.1 s"):
        worker.ask("regex", ["(a+)+$", "a" * 64 + "b"], seconds=0.1)
    assert worker.ask("regex", ["a", "a"], seconds=30) == "a"
    worker.close()
    worker.close()


def test_a_worker_that_cannot_start_is_told_and_is_no_wrong_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ScoringError, match="the worker of scorers does not start"):
        Worker().ask("regex", ["a", "a"], seconds=30)
