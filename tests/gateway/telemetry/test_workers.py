from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from pathlib import Path

from crossroads.gateway.telemetry import GatewayTelemetry, TelemetrySettings
from crossroads.gateway.telemetry.snapshot import Snapshot
from crossroads.gateway.telemetry.workers import SharedSnapshots
from tests.gateway.telemetry.records import record

REQUESTS = ("crossroads_requests", ("chat", "auto", "a", "200"))
IN_FLIGHT = ("crossroads_in_flight", ())


def one(n: float, in_flight: float = 0) -> Snapshot:
    return Snapshot(counters={REQUESTS: n}, gauges={IN_FLIGHT: in_flight})


def work(directory: Path, stays: bool) -> None:
    SharedSnapshots(directory, period=600.0).write(one(5, in_flight=3))
    if stays:
        time.sleep(60)


def test_each_worker_sees_the_sum_of_the_others(tmp_path: Path) -> None:
    first, second = SharedSnapshots(tmp_path), SharedSnapshots(tmp_path)
    first.write(one(2, in_flight=1))
    second.write(one(3, in_flight=4))
    assert first.others() == one(3, in_flight=4)
    assert second.others() == one(2, in_flight=1)


def test_a_killed_worker_leaves_its_counters_and_takes_its_gauges(tmp_path: Path) -> None:
    shared = SharedSnapshots(tmp_path, period=600.0)
    process = multiprocessing.get_context("spawn").Process(target=work, args=(tmp_path, True))
    process.start()
    deadline = time.monotonic() + 20
    while shared.others() != one(5, in_flight=3):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert shared.others() == Snapshot(counters={REQUESTS: 5})


def test_files_of_ended_workers_are_folded_into_one_and_count_once(tmp_path: Path) -> None:
    for pid in (4_194_301, 4_194_302, 4_194_303):  # beyond the kernel's highest
        old = SharedSnapshots(tmp_path)
        old._name = f"worker-{pid}-{pid}.json"
        old.write(one(10))
    for _ in range(3):
        assert SharedSnapshots(tmp_path).others() == Snapshot(counters={REQUESTS: 30})
    assert [path.name for path in tmp_path.glob("*.json")] == ["ended.json"]


def test_a_fold_cut_short_before_its_files_were_removed_counts_once(tmp_path: Path) -> None:
    old = SharedSnapshots(tmp_path)
    old._name = "worker-4194301-left.json"
    old.write(one(10))
    left = (tmp_path / old._name).read_bytes()
    SharedSnapshots(tmp_path)
    (tmp_path / old._name).write_bytes(left)  # as if the process had died before the removal
    assert SharedSnapshots(tmp_path).others().counters == {REQUESTS: 10}
    assert SharedSnapshots(tmp_path).others().counters == {REQUESTS: 10}


def test_a_torn_or_foreign_file_is_left_out(tmp_path: Path) -> None:
    shared = SharedSnapshots(tmp_path)
    (tmp_path / "worker-1-torn.json").write_text('{"counters": [["cross')
    (tmp_path / "worker-2-list.json").write_text("[1, 2]")
    assert shared.others() == Snapshot()


def test_any_worker_renders_the_figures_of_all(tmp_path: Path) -> None:
    async def run() -> bytes:
        settings = TelemetrySettings(logs=None, snapshot_s=0.02)
        workers = [GatewayTelemetry(settings, names="a", directory=tmp_path) for _ in range(2)]
        for worker in workers:
            await worker.start()
        for i, worker in enumerate(workers):
            for _ in range(i + 1):
                worker.end(record(policy="a"))
        deadline = time.monotonic() + 10
        text = b""
        while b"crossroads_scored" not in text or b'status="200"} 3.0' not in text:
            assert time.monotonic() < deadline, text
            await asyncio.sleep(0.02)
            text = await workers[0].render()
        for worker in workers:
            await worker.close()
        return text

    assert b"crossroads_workers 2.0" in asyncio.run(run())
