from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crossroads.core.errors import InputError
from crossroads.gateway.ledger import (
    Feedback,
    Filters,
    LedgerReader,
    LedgerSettings,
    open_ledger,
    owner_of,
)
from tests.gateway.ledger.records import record

NOW = time.time()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """30 calls: every third by another key and model, every tenth failed, two from a cache."""
    url = f"sqlite:{tmp_path_factory.mktemp('ledger')}/l.db"
    ledger = open_ledger(LedgerSettings(url=url))
    for n in range(30):
        changes = {"model": "large", "key_id": "key-b", "cost_usd": 0.01} if n % 3 == 0 else {}
        if n % 10 == 9:
            changes |= {"status": 503, "error": "upstream_error", "is_complete": False}
        if n in (1, 2):
            changes |= {"cache": "exact", "cost_usd": 0.0, "saved_usd": 0.001}
        if n == 4:
            changes |= {"scores": {}, "costs": {}}
        ledger.append(record(f"dec_{n}", time=NOW - 30 + n, total_ms=float(n), **changes))
    ledger.append_feedback(Feedback(decision_id="dec_5", score=0.0, time=NOW))
    ledger.append_feedback(Feedback(decision_id="dec_5", score=1.0, time=NOW + 1))
    ledger.close()
    return url


@pytest.fixture
def reader(url: str) -> Iterator[LedgerReader]:
    with LedgerReader(url) as opened:
        yield opened


def test_recent_calls_come_newest_first(reader: LedgerReader) -> None:
    assert [r.decision_id for r in reader.recent(3)] == ["dec_29", "dec_28", "dec_27"]


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (Filters(), 30),
        (Filters(model="large"), 10),
        (Filters(key_id="key-b", policy="auto"), 10),
        (Filters(policy="other"), 0),
        (Filters(is_error=True), 3),
        (Filters(is_error=False), 27),
        (Filters(since=NOW - 10), 10),
        (Filters(since=NOW - 20, until=NOW - 10), 10),
    ],
)
def test_filters_choose_calls(reader: LedgerReader, filters: Filters, count: int) -> None:
    assert len(reader.recent(100, filters)) == count
    assert len(list(reader.records(filters))) == count


def test_a_call_comes_with_what_was_said_about_it(reader: LedgerReader) -> None:
    entry = reader.get("dec_5")
    assert entry is not None
    assert [f.score for f in entry.feedback] == [0.0, 1.0]
    assert reader.get("dec_none") is None
    assert reader.key_of("dec_0") == "key-b"
    assert reader.key_of("dec_none") is None


def test_the_summary_adds_up(reader: LedgerReader) -> None:
    found = reader.summary()
    assert (found["calls"], found["errors"], found["cache_hits"]) == (30, 3, 2)
    assert found["cost_usd"] == pytest.approx(sum(r.cost_usd for r in reader.records()))
    for group in ("by_model", "by_policy", "by_key"):
        assert sum(each["calls"] for each in found[group].values()) == 30
        total = sum(each["cost_usd"] for each in found[group].values())
        assert total == pytest.approx(found["cost_usd"])
    assert found["by_error"] == {"upstream_error": 3}
    assert found["latency_ms"]["total_ms"]["p50"] == pytest.approx(14.5)
    assert found["latency_ms"]["first_token_ms"] is None


def test_savings_are_against_the_best_model_where_its_cost_was_known(reader: LedgerReader) -> None:
    found = reader.summary()
    assert found["best_model"] == "large"  # by the router's estimates
    assert found["compared_calls"] == 29
    assert found["best_model_cost_usd"] == pytest.approx(0.29)
    # expected against expected: what was billed may differ from both
    assert found["saved_usd"] == pytest.approx(0.29 - 0.029)
    other = reader.summary(best_model="small")
    assert other["best_model_cost_usd"] == pytest.approx(0.029)
    assert reader.models_with_costs() == ["large", "small"]
    assert reader.models_with_costs(NOW + 100) == []


def test_an_empty_period_has_a_summary(reader: LedgerReader) -> None:
    found = reader.summary(NOW + 100)
    assert found["calls"] == 0
    assert found["cost_usd"] == 0
    assert found["best_model"] is None


def test_a_ledger_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.db"):
        LedgerReader(f"sqlite:{tmp_path}/none.db")


def test_a_decision_on_its_way_is_found(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/l.db"
    ledger = open_ledger(LedgerSettings(url=url, flush_ms=60_000))
    ledger.append(record("dec_1"))
    with LedgerReader(url) as reader:
        assert owner_of(ledger, reader, "dec_1") == "key-a"
        assert owner_of(ledger, reader, "dec_2") is None
    ledger.close()


def test_a_database_of_something_else_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE customers (name TEXT)")
    connection.close()
    before = path.read_bytes()
    with (
        LedgerReader(f"sqlite:{path}") as reader,
        pytest.raises(InputError, match="not a ledger"),
    ):
        reader.get("dec_1")
    with pytest.raises(InputError, match="not a ledger"):
        open_ledger(LedgerSettings(url=f"sqlite:{path}"))
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("customers",)]
    connection.close()
    assert path.read_bytes() == before


def test_a_reader_makes_no_ledger_of_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    with (
        LedgerReader(f"sqlite:{tmp_path}/empty.db") as reader,
        pytest.raises(InputError, match="not a ledger"),
    ):
        reader.get("dec_1")


def test_a_file_that_is_no_database_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("nothing of a database, and longer than the head of one" * 10, "utf-8")
    before = path.read_bytes()
    with pytest.raises(InputError, match="not a ledger; give the URL the server writes"):
        open_ledger(LedgerSettings(url=f"sqlite:{path}"))
    with (
        LedgerReader(f"sqlite:{path}") as reader,
        pytest.raises(InputError, match="not a ledger"),
    ):
        reader.get("dec_1")
    assert path.read_bytes() == before
