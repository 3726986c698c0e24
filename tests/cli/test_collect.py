from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from crossroads.cli import main
from crossroads.cli.collect import command

PROMPTS = [
    {"prompt_id": "a", "prompt": "2 + 3", "reference": "5", "scorer": "numeric"},
    {"prompt_id": "b", "prompt": "2 km in m", "reference": "2000", "scorer": "numeric"},
]
POOL = """
models:
  - {name: calculator, endpoint: local:calculator}
  - {name: far, endpoint: "http://127.0.0.1:9/v1"}
"""


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, PROMPTS)), "utf-8")
    return str(path)


@pytest.fixture
def tools(tmp_path: Path) -> str:
    path = tmp_path / "tools.yaml"
    path.write_text("models: [{name: calculator, endpoint: local:calculator}]", "utf-8")
    return str(path)


def test_the_report_is_json_on_stdout(tmp_path: Path, prompts: str, tools: str) -> None:
    out = str(tmp_path / "out.csv")
    arguments = ["--pool", tools, "--prompts", prompts, "--out", out, "--json"]
    ended = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert ended.return_value == 0
    report = json.loads(ended.stdout)
    assert set(report) == {
        *("num_prompts", "num_cells", "num_finished", "num_reused", "num_unasked", "failures"),
        *("unscored", "models", "judges", "cost_unit", "seconds", "out"),
    }
    assert report["models"]["calculator"]["score"] == 0.5
    assert report["out"] == out


def test_a_table_is_shown_without_json(tmp_path: Path, prompts: str, tools: str) -> None:
    arguments = ["--pool", tools, "--prompts", prompts, "--out", str(tmp_path / "out.csv")]
    ended = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert ended.return_value == 0
    assert "calculator" in ended.stdout
    assert "2 of 2 cells (0 from an earlier run)" in ended.stdout


@pytest.mark.slow
def test_missing_cells_are_told_and_exit_with_one(
    tmp_path: Path, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "pool.yaml"
    pool.write_text(POOL, "utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["collect", "--pool", str(pool), "--prompts", prompts, "--out", f"{tmp_path}/o.csv"])
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert "2 of 4 cells" in shown.out
    assert shown.err.count("\n") == 2
    assert "failed: far: 2; first a: model 'far' at 127.0.0.1:9: no connection" in shown.err
    assert "the table is not complete; run the same command again" in shown.err


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        ({"--pool": "nowhere.yaml"}, 1, "pool 'nowhere.yaml': no such file"),
        ({"--prompts": "nowhere.csv"}, 1, "prompts 'nowhere.csv': no such file"),
        ({"--out": "out.xls"}, 2, "expected a name ending in .parquet"),
        ({"--concurrency": "0"}, 2, "0 is not in the range x>=1"),
        ({"--concurrency": "many"}, 2, "'many' is not a valid integer"),
        ({"--no-such": "1"}, 2, "No such option"),
    ],
)
def test_wrong_use_is_one_line(  # noqa: PLR0917 - fixtures and parameters
    tmp_path: Path,
    prompts: str,
    tools: str,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    code: int,
    told: str,
) -> None:
    given = {"--pool": tools, "--prompts": prompts, "--out": str(tmp_path / "o.csv"), **changes}
    with pytest.raises(SystemExit) as ended:
        main(["collect", *(word for pair in given.items() for word in pair)])
    shown = capsys.readouterr()
    assert ended.value.code == code
    assert shown.err.count("\n") == 1
    assert told in shown.err
    assert shown.out == ""
