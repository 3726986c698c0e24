from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from crossroads.core.errors import UnavailableError
from crossroads.gateway.workers import Worker, can_share_ports, reserve

pytestmark = pytest.mark.skipif(not can_share_ports(), reason="needs SO_REUSEPORT")

SUPERVISOR = """
import sys
from crossroads.gateway import workers
workers._LONGEST_PAUSE_S = 0.2
from crossroads.gateway.workers import reserve, supervise
holder = reserve("127.0.0.1", 0)
port = holder.getsockname()[1]
command = [sys.executable, "-m", "tests.gateway.worker_program", sys.argv[1]]
code = supervise(command, holder, workers=int(sys.argv[2]), drain=5.0,
                 on_ready=lambda: print(port, flush=True))
print("code", code, flush=True)
sys.exit(code)
"""


@contextmanager
def fleet(manner: str = "ok", workers: int = 2) -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = start(manner, workers)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the workers did not start"
        yield process, int(line)
    finally:
        process.terminate()
        process.communicate(timeout=15)


def start(manner: str, workers: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, manner, str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ask(port: int, path: str = "/pid") -> list[str]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", path)
        with connection.getresponse() as response:
            return response.read().decode().split()


def wait_for(what: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def pids(port: int, tries: int = 40) -> set[int]:
    """Workers that answer; a connection to one that was just killed may be reset."""
    found = set()
    for _ in range(tries):
        try:
            found.add(int(ask(port)[0]))
        except OSError:
            continue
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_all_workers_share_one_port_and_stop_with_their_parent() -> None:
    with fleet(workers=2) as (process, port):
        mine = pids(port)
        assert len(mine) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        assert not any(is_alive(pid) for pid in mine)


def test_a_worker_that_is_killed_comes_back_while_the_others_serve() -> None:
    with fleet(workers=2) as (_, port):
        before = pids(port)
        victim = next(iter(before))
        os.kill(victim, signal.SIGKILL)
        survivor = next(iter(before - {victim}))
        wait_for(lambda: survivor in pids(port, 5))
        wait_for(lambda: len(pids(port, 10)) == 2)
        assert victim not in pids(port)


@pytest.mark.slow
def test_a_worker_killed_under_load_leaves_no_answer_that_looks_whole() -> None:
    whole: list[list[str]] = []
    broken: list[Exception] = []

    def load(port: int) -> None:
        try:
            whole.append(ask(port, "/slow"))
        except (OSError, http.client.HTTPException) as error:
            broken.append(error)

    with fleet(workers=2) as (_, port):
        victim = next(iter(pids(port)))
        threads = [threading.Thread(target=load, args=(port,)) for _ in range(24)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        os.kill(victim, signal.SIGKILL)
        for thread in threads:
            thread.join()
    assert whole
    assert all(answer[-1] == "end" for answer in whole)
    assert len(whole) + len(broken) == 24


@pytest.mark.slow
def test_streams_in_flight_are_finished_at_a_stop() -> None:
    answers: list[list[str]] = []
    with fleet(workers=2) as (process, port):
        threads = [
            threading.Thread(target=lambda: answers.append(ask(port, "/slow"))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        for thread in threads:
            thread.join()
        assert process.wait(timeout=10) == 0
    assert answers == [["0", "1", "2", "3", "4", "end"]] * 4


def test_what_is_wrong_with_the_configuration_is_said_once() -> None:
    process = start("refuses", 3)
    _, errors = process.communicate(timeout=15)
    assert process.returncode == 2
    assert errors.count("gateway.yaml") == 1


@pytest.mark.slow
def test_workers_that_keep_dying_end_the_parent_with_one() -> None:
    process = start("dies-soon", 2)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "keep dying" in errors


@pytest.mark.slow
def test_workers_that_keep_dying_end_nothing_while_another_serves() -> None:
    process = start("dies-late", 2)
    assert process.stderr is not None
    try:
        for number in range(9):
            line = process.stderr.readline()
            assert line.startswith("worker 1 died (exit code 3)"), (number, line)
        assert process.poll() is None
    finally:
        process.terminate()
        process.communicate(timeout=15)
    assert process.returncode == 0


def test_a_worker_that_starts_later_is_told_what_the_first_one_serves_by() -> None:
    with fleet("tells", workers=2) as (_, port):
        told = {int(pid): said for pid, said in (ask(port, "/told") for _ in range(40))}
        assert sorted(told.values()) == ["''", "'by-the-first'"]
        (first,) = [pid for pid, said in told.items() if said == "''"]
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: first not in pids(port, 5) and len(pids(port, 10)) == 2)
        assert {ask(port, "/told")[1] for _ in range(20)} == {"'by-the-first'"}


def test_a_reload_reaches_every_worker() -> None:
    with fleet(workers=2) as (process, port):
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: {ask(port)[2] for _ in range(20)} == {"1"})


@pytest.mark.slow
def test_workers_stop_when_their_parent_is_killed() -> None:
    with fleet(workers=2) as (process, port):
        mine = pids(port)
        process.kill()
        process.wait(timeout=5)
        wait_for(lambda: not any(is_alive(pid) for pid in mine))


def test_a_port_that_is_taken_is_one_line_with_the_remedy() -> None:
    with reserve("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    with fleet(workers=1) as (_, taken):
        with pytest.raises(UnavailableError, match=rf"port {taken} on 127\.0\.0\.1 .*--port"):
            reserve("127.0.0.1", taken)
        assert port != taken


def test_a_process_that_is_no_worker_knows_it() -> None:
    assert Worker.of_this_process() is None


def test_a_worker_hides_its_place_from_processes_of_its_own() -> None:
    with fleet(workers=1) as (_, port):
        assert ask(port)[1] == "None"
