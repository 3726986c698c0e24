"""``crossroads list``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from crossroads.cli.list import command
from crossroads.core.catalog import families, load_cards
from crossroads.core.errors import UsageError
from crossroads.prompts import routers
from crossroads.prompts.routers import router_names

KEYS = {"name", "family", "title", "arxiv", "status", "verify"}


def listed(*arguments: str) -> list[dict[str, str]]:
    result = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    rows: list[dict[str, str]] = json.loads(result.output)
    return rows


def test_json_lists_exactly_the_systems_with_the_documented_keys() -> None:
    rows = listed()
    assert all(row.keys() == KEYS for row in rows)
    assert [row["name"] for row in rows] == [card.name for card in load_cards()]


def test_the_routers_are_a_list_of_their_own() -> None:
    assert [row["name"] for row in listed("routers")] == router_names()


@pytest.mark.parametrize("family", families())
def test_a_family_narrows_the_list_to_itself(family: str) -> None:
    rows = listed(family)
    assert rows == [row for row in listed() if row["family"] == family]


def test_status_follows_from_what_can_be_verified() -> None:
    for row in listed():
        assert row["status"] == ("verified" if row["verify"] else "planned")
    assert {row["status"] for row in listed("routers")} == {"available"}


def test_the_table_in_a_pipe_has_one_line_for_each_row() -> None:
    result = CliRunner().invoke(command, [], catch_exceptions=False)
    lines = result.stdout.splitlines()
    assert len(lines) == 1 + len(listed())
    assert lines[0].split()[0] == "name"
    for card, line in zip(load_cards(), lines[1:], strict=False):
        assert line.split()[0] == card.name
        assert card.routes in line
        assert line.split()[-1] == card.status


def test_an_unknown_family_meets_the_nearest_spelling() -> None:
    with pytest.raises(UsageError, match="unknown family 'prompt'; did you mean 'prompts'"):
        CliRunner().invoke(command, ["prompt"], catch_exceptions=False)


def test_a_router_is_described_by_its_module_without_importing_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = '"""Sends all to the first model.\n\nMore."""\nraise ImportError("imported")\n'
    (tmp_path / "first_model.py").write_text(source, "utf-8")
    monkeypatch.setattr(routers, "__path__", [*routers.__path__, str(tmp_path)])
    (row,) = [row for row in listed("routers") if row["name"] == "first-model"]
    assert row["title"] == "Sends all to the first model"
