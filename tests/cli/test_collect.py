from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from crossroads.cli import main
from crossroads.cli.collect import command
from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.readers import read_outcomes
from tests.prompts.logs.written import lm_eval_sample, write_lm_eval

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


def call(*arguments: str) -> tuple[int, str]:
    ended = CliRunner().invoke(command, list(arguments), standalone_mode=False)
    if ended.exception is not None:
        raise ended.exception
    return ended.return_value, ended.stdout


def test_a_dry_run_writes_nothing_and_shows_the_price(
    tmp_path: Path, prompts: str, tools: str
) -> None:
    out = str(tmp_path / "out.csv")
    given = ["--pool", tools, "--prompts", prompts, "--out", out, "--dry-run"]
    code, shown = call(*given)
    assert code == 0
    assert "2 cells, 0 of them from an earlier run; about 0 USD" in shown
    code, shown = call(*given, "--limit", "1", "--json")
    report = json.loads(shown)
    assert set(report) == {
        *("num_prompts", "num_cells", "num_reused", "models", "cost", "cost_unit")
    }
    assert (code, report["num_cells"], report["models"]["calculator"]["num_calls"]) == (0, 1, 1)
    assert not Path(out).exists()


def test_a_limit_takes_the_first_prompts(tmp_path: Path, prompts: str, tools: str) -> None:
    out = str(tmp_path / "out.csv")
    _, shown = call("--pool", tools, "--prompts", prompts, "--out", out, "--limit", "1", "--json")
    assert json.loads(shown)["num_prompts"] == 1


def test_rates_are_given_for_all_models_or_for_one(
    tmp_path: Path, prompts: str, tools: str
) -> None:
    given = ["--pool", tools, "--prompts", prompts, "--out", str(tmp_path / "out.csv")]
    code, _ = call(*given, "--rpm", "100", "--rpm", "calculator=90", "--tpm", "100000")
    assert code == 0


def test_logs_of_other_harnesses_become_a_table(tmp_path: Path) -> None:
    samples = [lm_eval_sample(0, acc=1.0, acc_norm=0.0), lm_eval_sample(1, acc=0.0, acc_norm=0.0)]
    log, out = str(write_lm_eval(tmp_path / "logs", samples)), str(tmp_path / "out.csv")
    code, shown = call("--from-log", log, "--out", out, "--json")
    assert (code, json.loads(shown)) == (
        0,
        {
            "num_prompts": 2,
            "models": {"acme/small": {"score": 0.5, "num_scored": 2}},
            "source": "logs of lm-evaluation-harness (sums: acc)",
            "out": out,
        },
    )
    assert read_outcomes(out).models == ("acme/small",)
    with pytest.raises(InputError, match="exists; choose another name or pass --overwrite"):
        call("--from-log", log, "--out", out)
    code, shown = call("--from-log", log, "--out", out, "--overwrite", "--metric", "acc_norm")
    assert code == 0
    assert "2 prompts from logs of lm-evaluation-harness (sums: acc_norm)" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--pool", "local"], "expected --pool and --prompts, or --from-log"),
        (["--pool", "local", "--prompts", "p", "--metric", "m"], "add --from-log"),
        (["--from-log", "l", "--prompts", "p"], "--from-log asks nothing"),
        (["--pool", "local", "--prompts", "p", "--rpm", "many"], "--rpm 'many': expected a whole"),
        (
            ["--pool", "local", "--prompts", "p", "--tpm", "m=1.5"],
            "--tpm 'm=1.5': expected a whole",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        call(*arguments, "--out", "o.csv")
