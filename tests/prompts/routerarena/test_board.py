from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.readers import write_outcomes
from crossroads.prompts.routerarena.board import Board, DataSource, open_board, read_board
from tests.prompts.routerarena.toy import toy_table


@pytest.fixture
def source(tmp_path: Path) -> DataSource:
    write_outcomes(toy_table(), tmp_path / "outcomes.csv")
    return DataSource(outcomes=str(tmp_path / "outcomes.csv"))


@pytest.fixture
def board(tmp_path: Path, source: DataSource) -> Board:
    return open_board(tmp_path / "board", source)


def test_a_board_remembers_what_it_judges_on(tmp_path: Path, source: DataSource) -> None:
    made = open_board(tmp_path / "board", source)
    assert open_board(tmp_path / "board").evaluation.fingerprint == made.evaluation.fingerprint
    assert open_board(tmp_path / "board", source).source == made.source
    with pytest.raises(InputError, match=r"judges on 'outcomes\.csv'"):
        open_board(tmp_path / "board", DataSource(outcomes="local"))
    write_outcomes(toy_table(cost=2 * toy_table().cost), tmp_path / "outcomes.csv")
    with pytest.raises(InputError, match="have changed"):
        open_board(tmp_path / "board")


def test_a_board_can_be_used_from_another_folder(
    tmp_path: Path, source: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    open_board(tmp_path / "board", DataSource(outcomes="outcomes.csv"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(open_board(tmp_path / "board").evaluation.rows) == 6


def test_the_cut_offs_of_the_difficulty_are_stored(board: Board) -> None:
    assert read_board(board.folder)["difficulty"] == pytest.approx(
        {"easy": 2 / 3, "hard": 1 / 3, "solved": 1.0}
    )


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"format": 2}', '{"format": 2, "source": 3}', '{"format": "2", "source": {}}'],
)
def test_a_damaged_board_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "board.json").write_text(text)
    with pytest.raises(InputError, match=r"board\.json: damaged"):
        read_board(tmp_path)


def test_a_board_of_another_version_or_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no board here"):
        read_board(tmp_path)
    (tmp_path / "board.json").write_text('{"format": 99, "source": {}}')
    with pytest.raises(InputError, match="another version"):
        read_board(tmp_path)


def test_a_board_whose_source_contradicts_itself_is_damaged(board: Board) -> None:
    path = board.folder / "board.json"
    facts = read_board(board.folder)
    path.write_text(json.dumps({**facts, "source": {"rows": "a", "outcomes": "b", "pool": "p"}}))
    with pytest.raises(InputError, match=r"board\.json: damaged"):
        open_board(board.folder)


@pytest.mark.parametrize("text", ["{", "{}", '{"arena_score": "high"}'])
def test_a_damaged_result_is_named(board: Board, text: str) -> None:
    (board.folder / "results").mkdir()
    (board.folder / "results" / "1-toy.json").write_text(text)
    with pytest.raises(InputError, match=r"1-toy\.json: damaged .*delete it and submit"):
        board.results()


def test_sources_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="either"):
        DataSource(rows="a", outcomes="b", pool="p")
    with pytest.raises(UsageError, match="--pool"):
        DataSource(rows="a")
