"""``crossroads arena``: what it prints, writes, refuses, and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from crossroads.cli import main
from crossroads.core.arena import leaderboard_schema
from crossroads.prompts import routers, tasks
from tests.prompts.toy_routers import TOYS, build_toy

WORDS = ("apple", "river", "stone", "cloud", "ember", "frost", "maple", "ocean", "tiger")


@pytest.fixture
def outcomes(tmp_path: Path) -> Path:
    """120 prompts x 2 models, with domains and costs."""
    rng = np.random.default_rng(0)
    lines = ["prompt_id,prompt,model,score,cost,domain"]
    for i in range(120):
        text, domain = f"{' '.join(rng.choice(WORDS, 4))} {i}", "ab"[i % 2]
        for model, cost in (("small", 0.001), ("large", 0.01)):
            lines.append(f"q{i},{text},{model},{rng.integers(2)},{cost},{domain}")
    path = tmp_path / "outcomes.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "build_router", build_toy)
    monkeypatch.setattr(routers, "build_router", build_toy)
    monkeypatch.setattr(routers, "router_class", TOYS.__getitem__)
    monkeypatch.setattr(routers, "router_names", lambda: sorted(TOYS))


@pytest.fixture
def inside(outcomes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the outcomes, as the current one."""
    monkeypatch.chdir(outcomes.parent)
    return outcomes.parent


def arena(*arguments: str | Path) -> int:
    """Run in this process and return the exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["arena", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.usefixtures("toys")
def test_it_prints_the_table_and_where_the_report_is(
    outcomes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--outcomes", outcomes, "--seeds", "2", "--jobs", "1", "--out", out)
    assert arena("prompts", *options) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for text in ("outcomes.csv (replayed outcomes)", "last", "oracle **", "best-single *",
                 str(out / "report.html"), str(out / "leaderboard.json")):  # fmt: skip
        assert text in printed.out
    assert (out / "report.html").stat().st_size > 1e6
    assert arena("prompts", *options) == 0
    assert "10 cells of an earlier run" in capsys.readouterr().out


@pytest.mark.usefixtures("toys")
def test_json_is_all_there_is_on_stdout(
    outcomes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = arena(
        "prompts", "--outcomes", outcomes, "--routers", "last", "--seeds", "1", "--jobs", "1",
        "--out", out, "--json",
    )  # fmt: skip
    assert code == 0
    data = json.loads(capsys.readouterr().out)
    jsonschema.validate(data, leaderboard_schema())
    assert {row["router"] for row in data["rows"]} == {
        "last", "best-single", "cheapest", "random", "oracle"
    }  # fmt: skip
    assert data == json.loads((out / "leaderboard.json").read_text())


@pytest.mark.usefixtures("toys")
def test_without_prices_nothing_is_called_cheapest(
    outcomes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line.split(",") for line in outcomes.read_text().splitlines()]
    unpriced = tmp_path / "unpriced.csv"
    unpriced.write_text("\n".join(",".join([*line[:4], line[5]]) for line in lines))
    options = ("--seeds", "1", "--jobs", "1", "--out", tmp_path / "out", "--json")
    assert arena("prompts", "--outcomes", unpriced, *options) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["router"] for row in rows} == {"last", "best-single", "random", "oracle"}


@pytest.mark.usefixtures("toys")
def test_the_folder_is_named_after_the_family_by_default(
    inside: Path,
) -> None:
    assert arena("prompts", "--outcomes", "outcomes.csv", "--seeds", "1", "--jobs", "1") == 0
    assert (inside / "runs" / "arena-prompts" / "report.html").is_file()


@pytest.mark.usefixtures("toys")
def test_options_reach_the_task(
    outcomes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = arena(
        "prompts", "--outcomes", outcomes, "--models", "large", "--train-share", "0.5",
        "--missing", "wrong", "--seeds", "1", "--jobs", "1", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert code == 0
    data = json.loads(capsys.readouterr().out)
    assert "120 prompts x 1 models; 50% to learn from" in data["description"]


@pytest.mark.usefixtures("toys", "inside")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["vision"], 2, "no arena or command 'vision'; there is: prompts, moe"),
        (["prompts", "--routers", "lst"], 2, "unknown router 'lst'; did you mean 'last'"),
        (["prompts", "--routers", " , "], 2, "expected names separated by commas"),
        (["prompts", "--models", "smal"], 2, "'smal'; did you mean 'small'"),
        (["prompts", "--engine", "cloud"], 2, "'cloud' is not one of 'local', 'ray'"),
        (["prompts", "--seeds", "0"], 2, "0 is not in the range x>=1"),
        (["prompts", "--train-share", "1"], 2, "0<x<1"),
        (["prompts", "--encoder", "big"], 2, "'big' is not one of"),
        (["prompts", "--outcomes", "nowhere.csv"], 1, "'nowhere.csv': no such file"),
        (["prompts", "--out", "outcomes.csv/below"], 1, "cannot be written"),
    ],
)
def test_what_is_wrong_is_said_on_one_line(
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    options = [] if "--outcomes" in arguments else ["--outcomes", "outcomes.csv"]
    assert arena(*arguments, *options) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.usefixtures("toys")
def test_a_table_nothing_can_be_judged_on_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["prompt_id,prompt,model,score"]
    lines += [f"q{i},word {i},{'ab'[i % 2]},1" for i in range(40)]
    path = tmp_path / "gaps.csv"
    path.write_text("\n".join(lines))
    assert arena("prompts", "--outcomes", path, "--jobs", "1", "--out", tmp_path / "out") == 1
    assert "no router could be run: seed 0: no test prompt" in capsys.readouterr().err


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from crossroads.cli import cli;"
        "cli.main(['arena', 'prompts', '--help'], standalone_mode=False);"
        "heavy = {'numpy', 'scipy', 'sklearn', 'pyarrow', 'plotly', 'joblib', 'jinja2', 'torch'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "--engine [local|ray]" in result.stdout


@pytest.mark.slow
def test_real_routers_run_in_processes_of_their_own(inside: Path) -> None:
    command = ["arena", "prompts", "--routers", "best-single", "--seeds", "2", "--jobs", "2"]
    result = subprocess.run(
        [sys.executable, "-m", "crossroads", *command, "--outcomes", "outcomes.csv", "--json"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    rows = {row["router"]: row for row in json.loads(result.stdout)["rows"]}
    assert set(rows) == {"best-single", "cheapest", "random", "oracle"}
    assert rows["best-single"]["metrics"]["gain_over_best_single"]["mean"] == 0
    assert rows["oracle"]["metrics"]["regret"]["mean"] == 0
    assert rows["cheapest"]["metrics"]["cost_per_1k"]["mean"] == pytest.approx(1.0)
