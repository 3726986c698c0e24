from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crossroads.core.errors import InputError, UnavailableError
from crossroads.gateway.contracts import Record
from crossroads.gateway.ledger import (
    Feedback,
    LedgerReader,
    LedgerSettings,
    SqlLedger,
    check_ledger,
    open_ledger,
)
from tests.gateway.ledger.records import record
from tests.gateway.postgres_server import PostgresServer

asyncpg = pytest.importorskip("asyncpg")
_numbers = itertools.count(1)


def run_sql(url: str, statement: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(statement)
        await connection.close()

    asyncio.run(run())


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    """An empty database."""
    name = f"ledger_{next(_numbers)}"
    run_sql(postgres.url, f"CREATE DATABASE {name}")
    return f"{postgres.url.rpartition('/')[0]}/{name}"


def settings(url: str, folder: Path, **changes: Any) -> LedgerSettings:
    return LedgerSettings(**{"url": url, "flush_ms": 10, "journal": folder, **changes})


def read_ids(url: str) -> list[str]:
    with LedgerReader(url) as reader:
        return [each.decision_id for each in reader.records()]


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.01)


def test_what_is_appended_is_what_is_read(url: str, tmp_path: Path) -> None:
    ledger = open_ledger(settings(url, tmp_path, keep=["text", "answers", "features"]))
    rows = [
        record(
            prompt=f"prompt {n}",
            answer="\u00e4\U0001f600",
            features=bytes([n, 0, 255]),
            probabilities={"small": 0.9, "large": 0.1},
            is_explored=n % 2 == 0,
            first_token_ms=None if n % 3 else 1.5,
            labels={"canary": "base"},
        )
        for n in range(120)
    ]
    for each in rows:
        ledger.append(each)
    ledger.append_feedback(Feedback(decision_id=rows[0].decision_id, score=0.25))
    ledger.close()
    with LedgerReader(url) as reader:
        assert list(reader.records()) == rows
        entry = reader.get(rows[0].decision_id)
        assert entry is not None
        assert entry.feedback[0].score == 0.25
        found = reader.summary(best_model="large")
        assert found["calls"] == 120
        assert found["saved_usd"] == pytest.approx(120 * (0.01 - 0.001))
        assert reader.summary()["best_model"] == "large"
        assert reader.models_with_costs() == ["large", "small"]
        assert reader.prune(time.time() + 10) == 121


def test_a_text_with_a_nul_is_cleaned_and_spoils_no_other(url: str, tmp_path: Path) -> None:
    ledger = open_ledger(settings(url, tmp_path))
    for n, reason in enumerate(("plain", "nul \x00 inside", "lone \udc00 surrogate")):
        ledger.append(record(f"dec_{n}", reason=reason))
    ledger.append(record("dec_huge", input_tokens=2**80))
    ledger.close()
    assert sorted(read_ids(url)) == ["dec_0", "dec_1", "dec_2", "dec_huge"]


def test_a_check_makes_no_tables(url: str, tmp_path: Path) -> None:
    check_ledger(settings(url, tmp_path))
    with pytest.raises(InputError, match="not a ledger"):
        read_ids(url)
    open_ledger(settings(url, tmp_path)).close()
    check_ledger(settings(url, tmp_path))
    assert read_ids(url) == []
    run_sql(url, "DROP TABLE ledger_schema")
    with pytest.raises(InputError, match="not a ledger"):
        check_ledger(settings(url, tmp_path))


def test_a_server_that_is_down_at_the_start_is_waited_for(
    url: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    postgres.kill()
    with pytest.raises(UnavailableError, match="start PostgreSQL"):
        check_ledger(settings(url, tmp_path))
    ledger = open_ledger(settings(url, tmp_path))
    ledger.append(record("dec_early"))
    ledger.flush()
    assert ledger.health()["journalled"] == 1
    postgres.start()
    wait_until(lambda: ledger.health()["state"] == "ok")
    ledger.close()
    assert read_ids(url) == ["dec_early"]


def test_killing_postgres_under_load_loses_no_row(
    url: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    ledger = open_ledger(settings(url, tmp_path, batch=50))
    appended: list[Record] = []
    is_over = threading.Event()

    def load() -> None:
        while not is_over.is_set():
            row = record()
            ledger.append(row)
            appended.append(row)
            time.sleep(0.0005)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        wait_until(lambda: ledger.health()["written"] > 100)
        postgres.kill()
        wait_until(lambda: ledger.health()["state"] == "degraded")
        wait_until(lambda: ledger.health()["journalled"] > 100)
        postgres.start()
        wait_until(lambda: ledger.health()["state"] == "ok")
        written = ledger.health()["written"]
        wait_until(lambda: ledger.health()["written"] > written + 50)
    finally:
        is_over.set()
        thread.join()
        ledger.close()
    assert ledger.health()["lost"] == 0
    assert sorted(read_ids(url)) == sorted(each.decision_id for each in appended)
    assert not list(tmp_path.glob("*.jsonl"))


def test_replicas_migrate_and_write_side_by_side(url: str, tmp_path: Path) -> None:
    opened: list[SqlLedger] = []

    def run(n: int) -> None:
        ledger = open_ledger(settings(url, tmp_path))
        for k in range(50):
            ledger.append(record(f"dec_{n}_{k}"))
        ledger.close()
        opened.append(ledger)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    assert len(set(read_ids(url))) == 200


def test_an_older_schema_is_migrated(url: str, tmp_path: Path) -> None:
    ledger = open_ledger(settings(url, tmp_path))
    ledger.append(record("dec_kept"))
    ledger.close()
    run_sql(url, "DROP TABLE feedback")  # as version 1 had none
    run_sql(url, "DELETE FROM ledger_schema WHERE version = 2")
    again = open_ledger(settings(url, tmp_path))
    again.append_feedback(Feedback(decision_id="dec_kept", score=0.5))
    again.close()
    with LedgerReader(url) as reader:
        entry = reader.get("dec_kept")
    assert entry is not None
    assert [each.score for each in entry.feedback] == [0.5]


def test_a_newer_schema_is_refused(url: str, tmp_path: Path) -> None:
    open_ledger(settings(url, tmp_path)).close()
    run_sql(url, "INSERT INTO ledger_schema VALUES (99)")
    with pytest.raises(InputError, match=r"version 99.*upgrade"):
        open_ledger(settings(url, tmp_path))


async def _read_off_the_loop(url: str) -> list[str]:
    return await asyncio.to_thread(read_ids, url)


def test_it_is_read_beside_a_running_event_loop(url: str, tmp_path: Path) -> None:
    ledger = open_ledger(settings(url, tmp_path))
    ledger.append(record("dec_1"))
    ledger.close()
    assert asyncio.run(_read_off_the_loop(url)) == ["dec_1"]


def test_a_database_of_something_else_is_left_as_it_was(url: str, tmp_path: Path) -> None:
    with LedgerReader(url) as reader, pytest.raises(InputError, match="not a ledger"):
        reader.get("dec_1")
    run_sql(url, "CREATE TABLE calls (caller TEXT)")
    with pytest.raises(InputError, match="not a ledger"):
        open_ledger(settings(url, tmp_path))
