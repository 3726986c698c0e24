from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from crossroads.core.errors import InputError
from crossroads.core.problems import on_one_line, problems_of
from crossroads.gateway.ledger import LedgerSettings
from crossroads.gateway.ledger.urls import check_url, default_journal, sqlite_path


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
    for url in ("mysql://me:hunter2@db/x", "postgresql+asyncpg://me:hunter2@db/x"):
        with pytest.raises(ValidationError) as caught:
            LedgerSettings(url=url)
        told = on_one_line(problems_of(caught.value, LedgerSettings))
        for text in (str(caught.value), told):
            assert "expected sqlite:PATH" in text
            assert "hunter2" not in text


@pytest.mark.parametrize("password", ["hun/ter2", "hun#ter2", "hun?ter2"])
def test_a_password_that_hides_the_host_is_refused_unseen(password: str) -> None:
    with pytest.raises(InputError, match="%2F") as caught:
        check_url(f"postgresql://me:{password}@db/x")
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:a%2Fb@db:5432/x?application_name=a@b",
        "postgresql://db:5432/x?application_name=a@b",
        "postgresql://me:pw@one:1,two:2/x",
        "postgresql:///x?host=/run/postgresql",
    ],
)
def test_other_urls_of_postgres_are_taken_as_they_are(url: str) -> None:
    assert check_url(url) == url


def test_a_new_password_keeps_the_journal() -> None:
    first = default_journal("postgresql://me:old@db/x?sslmode=require")
    assert first == default_journal("postgresql://me:new@db/x")
    assert first != default_journal("postgresql://you:old@db/x")


def test_journals_of_two_ledgers_are_told_apart(tmp_path: Path) -> None:
    first = default_journal("postgresql://me@db/one")
    second = default_journal("postgresql://me@db/two")
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert default_journal(f"sqlite:{tmp_path}/l.db")[0] == tmp_path
    assert sqlite_path("sqlite:/a/b.db") == Path("/a/b.db")
