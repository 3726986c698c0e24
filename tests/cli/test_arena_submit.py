"""``crossroads arena submit`` and ``leaderboard``: from a router to a row, offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crossroads.cli import main
from crossroads.prompts.readers import write_outcomes
from crossroads.prompts.routerarena import inference
from tests.prompts.routerarena.toy import toy_table


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an outcome table."""
    monkeypatch.chdir(tmp_path)
    write_outcomes(toy_table(), tmp_path / "toy.csv")
    return tmp_path


def arena(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["arena", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def submitted(*arguments: str) -> int:
    return arena("submit", *arguments, "--board", "board")


@pytest.mark.usefixtures("inside")
def test_a_prepared_router_becomes_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert submitted("one", "--outcomes", "toy.csv", "--prepare", "always:small") == 0
    assert submitted("two", "--prepare", "always:large", "--name", "big") == 0
    told = capsys.readouterr().out
    assert "always-small: rank 1 of 1" in told
    assert "big: rank 1 of 2" in told
    assert "6 rows of toy.csv (replayed outcomes)" in told
    assert arena("leaderboard", "--board", "board") == 0
    shown = capsys.readouterr().out
    assert shown.index("big") < shown.index("always-small")
    assert Path("board/leaderboard.html").stat().st_size > 1_000_000


@pytest.mark.usefixtures("inside")
def test_the_json_is_as_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert submitted("one", "--outcomes", "toy.csv", "--prepare", "random", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"figures", "rank", "is_new", "is_changed", "num_reused"}
    assert {
        *("router_name", "arena_score", "accuracy", "cost_per_1k_usd", "num_rows", "num_failed"),
        *("optimality", "robustness", "latency", "breakdown", "notes"),
    } <= set(found["figures"])
    assert arena("leaderboard", "--board", "board", "--json") == 0
    board = json.loads(capsys.readouterr().out)
    assert set(board) == {"data", "evidence", "num_rows", "notes", "rows"}
    assert board["rows"][0] == {"rank": 1, **found["figures"]}


@pytest.mark.usefixtures("inside")
def test_submitting_twice_is_told_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert submitted("one", "--outcomes", "toy.csv", "--prepare", "always:small") == 0
    before = Path("board/leaderboard.json").read_bytes()
    assert submitted("one") == 0
    assert "on the board already; nothing changed" in capsys.readouterr().out
    assert Path("board/leaderboard.json").read_bytes() == before


@pytest.mark.usefixtures("inside")
def test_forcing_tells_whether_figures_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert submitted("one", "--outcomes", "toy.csv", "--prepare", "always:small") == 0
    assert submitted("one", "--force") == 0
    assert "on the board already; nothing changed" in capsys.readouterr().out
    (path,) = Path("board/results").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "accuracy": 99.0}))
    assert submitted("one", "--force") == 0
    told = capsys.readouterr().out
    assert "on the board already; its figures changed" in told and "nothing changed" not in told


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("name", ["submissions/always-small.json", "scores.json"])
def test_damaged_files_of_the_board_are_one_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submitted("one", "--outcomes", "toy.csv", "--prepare", "always:small") == 0
    Path("board", name).write_text("{")
    capsys.readouterr()
    arguments = ["one"] if name.startswith("sub") else ["two", "--prepare", "always:large"]
    assert submitted(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and f"{name}: damaged" in line and "delete it" in line
    Path("board/leaderboard.json").write_text("{")
    assert arena("leaderboard", "--board", "board") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "leaderboard.json: damaged" in line and "arena submit" in line


def break_predictions(change: dict[str, Any]) -> None:
    path = Path("one/predictions.json")
    entries = json.loads(path.read_text())
    entries[2] |= change
    path.write_text(json.dumps(entries))


@pytest.mark.usefixtures("inside")
def test_every_problem_is_a_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert submitted("one", "--outcomes", "toy.csv", "--prepare", "always:small", "--check") == 0
    assert "nothing is wrong" in capsys.readouterr().out
    break_predictions({"prediction": "huge", "prompt": "What else?"})
    assert submitted("one") == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "prediction 3 (Toy_2): the prompt is not the data set's",
        "prediction 3 (Toy_2): model 'huge' is not among the config's models",
        "error: submission refused: 2 problems",
    ]
    assert submitted("one", "--check", "--json") == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 2
    assert not Path("board/results").exists()


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["one"], 1, "no such folder; make one with --prepare"),
        (["one", "--name", "x"], 2, "go with --prepare"),
        (["one", "--prepare", "always:nobody"], 2, "unknown model 'nobody'"),
        (["one", "--prepare", "nowhere"], 1, "nowhere"),
        (["one", "--rows", "rows.json"], 2, "--rows needs --pool"),
        (["one", "--jobs", "0"], 2, "0 is not in the range"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [] if "--rows" in arguments else ["--outcomes", "toy.csv"]
    assert submitted(*arguments, *data) == code
    message = capsys.readouterr().err
    assert told in message
    assert len(message.splitlines()) == 1


@pytest.mark.usefixtures("inside")
def test_a_board_without_submissions_and_no_board(capsys: pytest.CaptureFixture[str]) -> None:
    assert submitted("one", "--outcomes", "toy.csv") == 1  # makes the board, finds no folder
    assert arena("leaderboard", "--board", "board") == 0
    capsys.readouterr()
    assert arena("leaderboard", "--board", "board", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == []
    assert arena("leaderboard", "--board", "nowhere") == 1
    assert "no board here" in capsys.readouterr().err


def test_models_of_this_machine_answer_published_rows(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"Global Index": "Sums_1", "Question": "2 + 3", "Answer": "5", "metric": "numeric",
         "prompt_formatted": "2 + 3"},
        {"Global Index": "Sums_2", "Question": "2 + 2", "Answer": "5", "metric": "numeric",
         "prompt_formatted": "2 + 2"},
    ]  # fmt: skip
    (inside / "rows.json").write_text(json.dumps(rows))
    (inside / "pool.yaml").write_text(
        "models: [{name: sums, price_per_call: 0.001, endpoint: local:calculator}]"
    )
    code = submitted(
        "one", "--rows", "rows.json", "--pool", "pool.yaml", "--prepare", "always:sums", "--json"
    )
    assert code == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["accuracy"] == 50
    assert figures["cost_per_1k_usd"] == pytest.approx(1.0)
    assert len((inside / "board/cache/sums.jsonl").read_text().splitlines()) == 2


def test_models_out_of_reach_are_one_line_and_publish_nothing(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "_LONGEST_WAIT", 0.0)
    rows = [{"Global Index": "Sums_1", "Question": "2 + 3", "Answer": "5", "metric": "numeric"}]
    (inside / "rows.json").write_text(json.dumps(rows))
    (inside / "pool.yaml").write_text(
        "models: [{name: away, price_in: 1.0, price_out: 1.0, endpoint: 'http://127.0.0.1:9/v1'}]"
    )
    data = ["--rows", "rows.json", "--pool", "pool.yaml", "--prepare", "always:away"]
    assert submitted("one", *data) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: 1 of 1 calls have no answer yet (away: 1; model 'away' at ")
    assert line.endswith("nothing was published; run this again to continue with what is missing")
    assert [path.name for path in (inside / "board").iterdir()] == ["board.json"]


@pytest.mark.usefixtures("inside")
def test_the_table_marks_baselines_and_routers_that_saw_the_rows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    saw = "fitted on the very rows it is judged on"
    assert submitted("one", "--outcomes", "toy.csv", "--prepare", "always:small") == 0
    assert submitted("two", "--prepare", "random", "--name", "mine") == 0
    assert submitted("three", "--prepare", "random", "--name", "seen", "--check") == 0
    config = Path("three/config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "remarks": [saw]}))
    assert submitted("three") == 0
    capsys.readouterr()
    assert arena("leaderboard", "--board", "board") == 0
    shown = capsys.readouterr().out
    assert "always-small *" in shown
    assert "seen !" in shown
    assert "mine *" not in shown and "mine !" not in shown
    assert "* baseline: does not compete" in shown
    assert f"! seen does not compete: {saw}" in shown


@pytest.mark.slow
@pytest.mark.usefixtures("inside")
def test_a_fitted_router_goes_all_the_way_on_the_shipped_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "knn", "--outcomes", "local", "--out", "knn"])
    assert ended.value.code == 0
    assert submitted("one", "--prepare", "knn") == 0
    told = capsys.readouterr().out
    assert "knn: rank 1 of 1" in told
    assert "the very rows it is judged on" in told
