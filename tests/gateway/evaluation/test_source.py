from __future__ import annotations

import time
from pathlib import Path

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.gateway.evaluation.source import parse_since, read_ledger, read_log
from crossroads.gateway.ledger import Feedback, LedgerReader, LedgerSettings, open_ledger
from crossroads.gateway.ledger.export import write_calls
from tests.gateway.ledger.records import record

NOW = time.time()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "l.db"
    ledger = open_ledger(LedgerSettings(url=f"sqlite:{path}"))
    for n in range(10):
        ledger.append(record(f"d{n}", time=NOW - 100 * n, policy="auto" if n % 2 else "other"))
        ledger.append_feedback(
            Feedback(decision_id=f"d{n}", score=n / 10, source="judge" if n % 3 else "user")
        )
    ledger.close()
    return path


def test_a_ledger_is_read_by_url_by_path_and_from_exported_calls(
    path: Path, tmp_path: Path
) -> None:
    exported = tmp_path / "calls.parquet"
    with LedgerReader(f"sqlite:{path}") as reader:
        write_calls(reader.records(), reader.feedback(), exported)
    logs = [read_log(source) for source in (f"sqlite:{path}", str(path), str(exported))]
    assert [len(log) for log in logs] == [10, 10, 10]
    assert all((log.reward == logs[0].reward).all() for log in logs)
    assert len(read_ledger(str(exported), since=NOW - 350)[0]) == 4


def test_policy_judge_and_time_narrow_the_log(path: Path) -> None:
    source = f"sqlite:{path}"
    assert len(read_log(source, policy="other")) == 5
    assert len(read_log(source, judge="user")) == 4
    assert len(read_log(source, since=NOW - 350)) == 4
    assert len(read_log(source, reward="complete")) == 10


def test_a_ledger_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("none.db", "none.parquet", "none.jsonl"):
        with pytest.raises(InputError, match=f"{name}': no such file; give sqlite:PATH"):
            read_log(str(tmp_path / name))


def test_times_are_dates_or_ago() -> None:
    assert parse_since(None) is None
    ago = parse_since("2d")
    assert ago is not None
    assert abs(ago - (time.time() - 172_800)) < 5
    assert parse_since("2026-05-01T00:00:00+00:00") == 1_777_593_600
    with pytest.raises(UsageError, match="7d or 12h"):
        parse_since("yesterday")
