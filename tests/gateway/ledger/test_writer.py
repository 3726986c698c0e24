from __future__ import annotations

import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UnavailableError
from crossroads.gateway.contracts import Ledger, Record
from crossroads.gateway.ledger import (
    Feedback,
    LedgerReader,
    LedgerSettings,
    SqlLedger,
    check_ledger,
    open_ledger,
)
from crossroads.gateway.ledger.schema import Row
from crossroads.gateway.ledger.sqlite import SqliteStore
from crossroads.gateway.ledger.urls import default_journal
from tests.gateway.ledger.records import record
from tests.gateway.ledger.test_schema import RECORDS


def settings(folder: Path, **changes: Any) -> LedgerSettings:
    return LedgerSettings(**{"url": f"sqlite:{folder}/l.db", "flush_ms": 10, **changes})


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    opened = open_ledger(settings(tmp_path))
    yield opened
    opened.close()


class FlakyStore(SqliteStore):
    """An SQLite file whose writes fail, or hang, while told so."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.is_full = False
        self.hold: Callable[[], None] = lambda: None

    def open(self) -> None:
        if self.is_full:
            raise UnavailableError("database or disk is full")
        super().open()

    def insert(self, table: str, rows: Sequence[Row]) -> None:
        self.hold()
        if self.is_full:
            raise UnavailableError("database or disk is full")
        super().insert(table, rows)


def read_ids(folder: Path) -> set[str]:
    with LedgerReader(f"sqlite:{folder}/l.db") as reader:
        return {each.decision_id for each in reader.records()}


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.005)


def test_it_is_a_ledger_and_returns_what_it_was_given(ledger: SqlLedger, tmp_path: Path) -> None:
    contract: Ledger = ledger
    rows = [record(is_stream=n % 2 == 0, labels={"n": str(n)}) for n in range(1200)]
    for each in rows:
        contract.append(each)
    assert ledger.flush()
    with LedgerReader(f"sqlite:{tmp_path}/l.db") as reader:
        assert list(reader.records()) == rows
    assert ledger.health()["written"] == 1200
    assert ledger.health()["state"] == "ok"


@settings_of_hypothesis(max_examples=15, deadline=None)
@given(st.lists(RECORDS, max_size=80, unique_by=lambda r: r.decision_id))
def test_whatever_is_appended_is_what_is_read(rows: list[Record]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ledger = open_ledger(settings(folder, keep=["text", "answers", "features"], batch=33))
        for each in rows:
            ledger.append(each)
        ledger.close()
        with LedgerReader(f"sqlite:{folder}/l.db") as reader:
            assert list(reader.records()) == rows


def test_rows_are_committed_within_the_flush_interval_without_being_asked(tmp_path: Path) -> None:
    ledger = open_ledger(settings(tmp_path, flush_ms=20))
    ledger.append(record("dec_1"))
    wait_until(lambda: ledger.health()["written"] == 1)
    assert read_ids(tmp_path) == {"dec_1"}
    ledger.close()


def test_closing_drains_and_may_be_repeated(tmp_path: Path) -> None:
    ledger = open_ledger(settings(tmp_path, flush_ms=60_000))
    for n in range(700):
        ledger.append(record(f"dec_{n}"))
    ledger.close()
    ledger.close()
    assert len(read_ids(tmp_path)) == 700


def test_a_row_appended_twice_is_kept_once(ledger: SqlLedger, tmp_path: Path) -> None:
    ledger.append(record("dec_1"))
    ledger.append(record("dec_1"))
    ledger.flush()
    assert len(read_ids(tmp_path)) == 1


def test_overflow_is_counted_and_never_raises(tmp_path: Path) -> None:
    store = FlakyStore(tmp_path / "l.db")
    ledger = SqlLedger(settings(tmp_path, queue=10), store)  # not started: nothing drains it
    for _ in range(25):
        ledger.append(record())
    ledger.append_feedback(Feedback(decision_id="dec_1", score=1.0))
    assert ledger.health()["queued"] == 10
    assert ledger.health()["lost"] == 16


def test_rows_that_a_full_database_refuses_are_journalled_and_replayed(tmp_path: Path) -> None:
    store = FlakyStore(tmp_path / "l.db")
    ledger = SqlLedger(settings(tmp_path, flush_ms=5), store)
    ledger.start()
    ledger.append(record("dec_before"))
    ledger.flush()
    store.is_full = True
    for n in range(50):
        ledger.append(record(f"dec_{n}", features=b"\x00\xff"))
    ledger.flush()
    health = ledger.health()
    assert health["state"] == "degraded"
    assert "full" in health["error"]
    assert (health["journalled"], health["lost"], health["queued"]) == (50, 0, 0)
    assert Path(health["journal"]).stat().st_mode & 0o077 == 0  # it may hold prompts
    store.is_full = False
    wait_until(lambda: ledger.health()["state"] == "ok")
    assert ledger.health()["replayed"] == 50
    assert not Path(health["journal"]).exists()
    assert read_ids(tmp_path) == {"dec_before", *(f"dec_{n}" for n in range(50))}
    ledger.close()


def test_with_database_and_journal_full_rows_wait_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, entry: object) -> None:
        with path.open("ab") as file:
            file.write(b'{"half a li')
        raise InputError(f"{path}: cannot be written: No space left on device")

    store = FlakyStore(tmp_path / "l.db")
    ledger = SqlLedger(settings(tmp_path, flush_ms=5, queue=100, batch=10), store)
    ledger.start()
    store.is_full = True
    with monkeypatch.context() as patch:
        patch.setattr("crossroads.gateway.ledger.journal.append_line", refuse)
        for n in range(30):
            ledger.append(record(f"dec_{n}"))
        wait_until(lambda: ledger.health()["journal_error"] is not None)
        assert "No space left" in ledger.health()["journal_error"]
        assert ledger.health()["lost"] == 0
    wait_until(lambda: ledger.health()["journalled"] == 30)  # room again for the journal only
    store.is_full = False
    wait_until(lambda: ledger.health()["state"] == "ok")
    assert len(read_ids(tmp_path)) == 30
    ledger.close()


def test_a_database_that_hangs_does_not_lose_what_comes_meanwhile(tmp_path: Path) -> None:
    store = FlakyStore(tmp_path / "l.db")
    ledger = SqlLedger(settings(tmp_path, flush_ms=5, queue=100), store)
    ledger.start()
    is_held = True

    def hold() -> None:
        while is_held:
            time.sleep(0.005)

    store.hold = hold
    for n in range(95):
        ledger.append(record(f"dec_{n}"))
    wait_until(lambda: ledger.health()["queued"] <= 75)  # the rest went to the journal
    is_held = False
    wait_until(lambda: ledger.health()["state"] == "ok" and not ledger.health()["queued"])
    ledger.close()
    assert len(read_ids(tmp_path)) == 95
    assert ledger.health()["lost"] == 0


def test_a_journal_that_is_removed_during_an_outage_loses_no_row(tmp_path: Path) -> None:
    store = FlakyStore(tmp_path / "l.db")
    folder = tmp_path / "journals"
    ledger = SqlLedger(settings(tmp_path, flush_ms=5, queue=100, journal=folder), store)
    ledger.start()
    store.is_full = True
    for n in range(20):
        ledger.append(record(f"dec_{n}"))
    wait_until(lambda: ledger.health()["journalled"] == 20)
    shutil.rmtree(folder)
    folder.write_text("no folder can be here")
    for n in range(20, 110):
        ledger.append(record(f"dec_{n}"))
    wait_until(lambda: ledger.health()["journal_error"] is not None)
    assert ledger._guard.is_alive()
    assert ledger.health()["lost"] == 0
    folder.unlink()
    wait_until(lambda: ledger.health()["journalled"] == 110)
    assert ledger.health()["journal_error"] is None
    shutil.rmtree(folder)  # and nothing is appended before the database is back
    store.is_full = False
    wait_until(lambda: ledger.health()["state"] == "ok")
    ledger.close()
    assert len(read_ids(tmp_path)) == 110


def test_a_journal_that_cannot_be_read_keeps_no_row_from_the_database(tmp_path: Path) -> None:
    store = FlakyStore(tmp_path / "l.db")
    folder = tmp_path / "journals"
    ledger = SqlLedger(settings(tmp_path, flush_ms=5, journal=folder), store)
    ledger.start()
    store.is_full = True
    ledger.append(record("dec_journalled"))
    wait_until(lambda: ledger.health()["journalled"] == 1)
    shutil.rmtree(folder)
    folder.write_text("no folder can be here")
    store.is_full = False
    wait_until(lambda: ledger.health()["journal_error"] is not None)
    ledger.append(record("dec_direct"))
    wait_until(lambda: ledger.health()["written"] == 1)
    assert (ledger.health()["error"], ledger.health()["state"]) == (None, "degraded")
    folder.unlink()
    wait_until(lambda: ledger.health()["state"] == "ok")
    ledger.close()
    assert read_ids(tmp_path) == {"dec_direct", "dec_journalled"}


def test_what_a_hanging_database_holds_up_at_the_end_is_journalled(tmp_path: Path) -> None:
    store = FlakyStore(tmp_path / "l.db")
    ledger = SqlLedger(settings(tmp_path, flush_ms=5, batch=10), store)
    ledger.start()
    go_on = threading.Event()

    def hold() -> None:
        go_on.wait(30)

    store.hold = hold
    for n in range(30):
        ledger.append(record(f"dec_{n}"))
    wait_until(lambda: ledger.health()["queued"] == 20)
    ledger.close(timeout_s=0.05)
    assert (ledger.health()["spilled"], ledger.health()["lost"]) == (30, 0)
    go_on.set()
    ledger._thread.join()
    open_ledger(settings(tmp_path)).close()
    assert len(read_ids(tmp_path)) == 30


def test_a_replay_that_hangs_keeps_no_row_from_the_journal(tmp_path: Path) -> None:
    store = FlakyStore(tmp_path / "l.db")
    ledger = SqlLedger(settings(tmp_path, flush_ms=5, batch=10, queue=40), store)
    ledger.start()
    store.is_full = True
    for n in range(10):
        ledger.append(record(f"dec_{n}"))
    wait_until(lambda: ledger.health()["journalled"] == 10)
    go_on, is_hanging = threading.Event(), threading.Event()

    def hold() -> None:
        is_hanging.set()
        go_on.wait(30)

    store.hold = hold
    store.is_full = False
    assert is_hanging.wait(10)
    for n in range(10, 45):
        ledger.append(record(f"dec_{n}"))
    wait_until(lambda: ledger.health()["spilled"] > 10)  # by the second thread
    go_on.set()
    wait_until(lambda: ledger.health()["state"] == "ok" and not ledger.health()["queued"])
    health = ledger.health()
    assert (health["lost"], health["replayed"], health["journalled"]) == (0, health["spilled"], 0)
    assert not Path(health["journal"]).exists()
    ledger.close()
    assert len(read_ids(tmp_path)) == 45


def test_what_neither_database_nor_journal_takes_at_the_end_is_counted(tmp_path: Path) -> None:
    store = FlakyStore(tmp_path / "l.db")
    folder = tmp_path / "journals"
    folder.write_text("no folder can be here")
    ledger = SqlLedger(settings(tmp_path, flush_ms=5, journal=folder), store)
    ledger.start()
    store.is_full = True
    for n in range(7):
        ledger.append(record(f"dec_{n}"))
    ledger.close()
    ledger.close()
    assert ledger.health()["lost"] == 7


def test_the_journal_of_a_process_that_died_is_adopted_by_the_next(tmp_path: Path) -> None:
    store = FlakyStore(tmp_path / "l.db")
    first = SqlLedger(settings(tmp_path), store)
    first.start()
    first.flush()
    store.is_full = True
    first.append(record("dec_left"))
    first.flush()
    first.close()  # the store is full to the end
    assert read_ids(tmp_path) == set()
    second = open_ledger(settings(tmp_path))
    wait_until(lambda: second.health()["replayed"] == 1)
    second.close()
    assert read_ids(tmp_path) == {"dec_left"}
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_damaged_journal_is_put_aside_and_holds_nobody_up(tmp_path: Path) -> None:
    name = default_journal(f"sqlite:{tmp_path}/l.db")[1]
    (tmp_path / f"{name}-1-dead.jsonl").write_text("no JSON\n")
    ledger = open_ledger(settings(tmp_path))
    ledger.append(record("dec_1"))
    ledger.flush()
    health = ledger.health()
    ledger.close()
    assert health["state"] == "ok"
    assert health["damaged_journals"] == [f"{tmp_path}/{name}-1-dead.damaged"]
    assert read_ids(tmp_path) == {"dec_1"}


def test_half_a_line_at_the_end_of_a_journal_is_cut_off(tmp_path: Path) -> None:
    store = FlakyStore(tmp_path / "l.db")
    first = SqlLedger(settings(tmp_path), store)
    first.start()
    first.flush()
    store.is_full = True
    first.append(record("dec_whole"))
    first.flush()
    first.close()
    with Path(first.health()["journal"]).open("ab") as file:
        file.write(b'{"table": "calls", "rows": [["dec_ha')
    second = open_ledger(settings(tmp_path))
    wait_until(lambda: second.health()["replayed"] == 1)
    second.close()
    assert read_ids(tmp_path) == {"dec_whole"}


def test_the_journal_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    store = FlakyStore(tmp_path / "l.db")
    first = SqlLedger(settings(tmp_path), store)
    first.start()
    first.flush()
    store.is_full = True
    first.append(record("dec_mine"))
    first.flush()
    second = open_ledger(settings(tmp_path))
    second.append(record("dec_other"))
    second.flush()
    second.close()
    assert read_ids(tmp_path) == {"dec_other"}
    first.close()


@pytest.mark.parametrize(
    "poison",
    [
        {"prompt": "lone \ud800 surrogate"},
        {"input_tokens": 2**70},
        {"reason": "nul \x00 inside"},
    ],
)
def test_a_strange_row_is_cleaned_and_spoils_no_other(
    tmp_path: Path, poison: dict[str, Any]
) -> None:
    ledger = open_ledger(settings(tmp_path, keep=["text"]))
    for each in (record("dec_1"), record("dec_2", **poison), record("dec_3")):
        ledger.append(each)
    ledger.flush()
    ledger.close()
    assert read_ids(tmp_path) == {"dec_1", "dec_2", "dec_3"}


def test_a_row_that_no_database_takes_is_counted(tmp_path: Path) -> None:
    ledger = open_ledger(settings(tmp_path))
    ledger.append(record("dec_1", labels={"a": object()}))  # no JSON
    ledger.append(record("dec_2"))
    ledger.flush()
    assert ledger.health()["rejected"] == 1
    ledger.close()
    assert read_ids(tmp_path) == {"dec_2"}


def test_rows_beyond_retention_are_deleted(tmp_path: Path) -> None:
    ledger = open_ledger(settings(tmp_path))
    ledger.append(record("dec_old", time=time.time() - 3 * 86_400))
    ledger.append(record("dec_new"))
    ledger.flush()
    ledger.close()
    again = open_ledger(settings(tmp_path, retention_days=2))
    wait_until(lambda: read_ids(tmp_path) == {"dec_new"})
    again.close()


def test_a_place_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    wrong = LedgerSettings(url=f"sqlite:{tmp_path}/file/l.db")
    with pytest.raises(InputError, match=r"file/l\.db"):
        open_ledger(wrong)
    with pytest.raises(UnavailableError):
        check_ledger(wrong)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.db").write_bytes(b"something else, and long enough to be looked at" * 50)
    with pytest.raises(InputError, match="not a ledger"):
        open_ledger(settings(tmp_path))


def test_an_older_schema_is_migrated_and_a_newer_one_refused(tmp_path: Path) -> None:
    ledger = open_ledger(settings(tmp_path))
    ledger.append(record("dec_kept"))
    ledger.close()
    connection = sqlite3.connect(tmp_path / "l.db")
    connection.execute("DROP TABLE feedback")  # as version 1 had none
    connection.execute("PRAGMA user_version=1")
    connection.commit()
    check_ledger(settings(tmp_path))
    assert connection.execute("PRAGMA user_version").fetchone() == (1,), "a check migrates nothing"
    again = open_ledger(settings(tmp_path))
    again.append_feedback(Feedback(decision_id="dec_kept", score=0.5))
    again.close()
    with LedgerReader(f"sqlite:{tmp_path}/l.db") as reader:
        entry = reader.get("dec_kept")
    assert entry is not None
    assert [each.score for each in entry.feedback] == [0.5]
    connection.execute("PRAGMA user_version=99")
    connection.commit()
    connection.close()
    for use in (open_ledger, check_ledger):
        with pytest.raises(InputError, match=r"version 99.*upgrade"):
            use(settings(tmp_path))
