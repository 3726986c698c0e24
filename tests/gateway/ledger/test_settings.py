from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from crossroads.gateway.ledger import LedgerSettings
from crossroads.gateway.ledger.urls import default_journal, redacted, sqlite_path


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "mysql://host/db"},
        {"url": "sqlite:"},
        {"flush_ms": 0},
        {"batch": 0},
        {"queue": 0},
        {"keep": ["everything"]},
        {"retention_days": 0},
        {"colour": "red"},
    ],
)
def test_wrong_values_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LedgerSettings.model_validate(wrong)


def test_nothing_of_the_content_is_kept_by_default() -> None:
    assert LedgerSettings().keep == ()


def test_a_password_is_in_no_message() -> None:
    url = "postgresql://me:hunter2@db:5432/ledger?password=hunter3"
    assert redacted(url) == "postgresql://me@db:5432/ledger"
    with pytest.raises(ValidationError) as caught:
        LedgerSettings(url="mysql://me:hunter2@db/x")
    assert "expected sqlite:PATH" in str(caught.value)


def test_journals_of_two_ledgers_are_told_apart(tmp_path: Path) -> None:
    first = default_journal("postgresql://me@db/one")
    second = default_journal("postgresql://me@db/two")
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert default_journal(f"sqlite:{tmp_path}/l.db")[0] == tmp_path
    assert sqlite_path("sqlite:/a/b.db") == Path("/a/b.db")
