"""``crossroads fit`` as a process: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from crossroads.cli.fit import command
from crossroads.prompts.artefact import HEADER, arrays_name

COOKING = ("bake bread", "boil rice", "fry onions", "roast a chicken", "knead the dough")
SPACE = ("the orbit of Mars", "a lunar eclipse", "launch a rocket", "the rings of Saturn", "comets")

MODELS = tuple(enumerate(("odd", "even")))


def write_table(path: Path) -> Path:
    """A cook and an astronomer, each right on its kind of prompt."""
    lines = ["prompt_id,prompt,model,score,cost"]
    for n in range(12):
        for text in (*COOKING, *SPACE):
            cooks = text in COOKING
            lines.append(f"{text} {n},{text} {n},cook,{int(cooks)},0.001")
            lines.append(f"{text} {n},{text} {n},astronomer,{int(not cooks)},0.002")
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def crossroads(*arguments: object) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "crossroads", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, check=False)


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    for part in parts:
        assert part in done.stderr


def test_fit_saves_a_router_and_says_how_good_it_is(tmp_path: Path) -> None:
    out = tmp_path / "router"
    done = crossroads("fit", "ridge", "--outcomes", write_table(tmp_path / "t.csv"), "--out", out)
    assert done.returncode == 0, done.stderr
    arrays = arrays_name(json.loads((out / HEADER).read_text()))
    assert {p.name for p in out.iterdir()} == {HEADER, arrays}
    assert "ridge: 2 models, 120 prompts (t.csv)" in done.stdout
    assert "held out (" in done.stdout
    assert "best single model" in done.stdout
    assert "cost per 1,000 prompts" in done.stdout
    assert done.stderr == ""  # no progress bar in a pipe


def test_fit_names_the_cheapest_rule_as_good_as_the_best_single_model(tmp_path: Path) -> None:
    out = tmp_path / "router"
    table = write_table(tmp_path / "t.csv")
    done = crossroads("fit", "ridge", "--outcomes", table, "--out", out)
    found = json.loads((out / HEADER).read_text())["metrics"]
    line = next(line for line in done.stdout.splitlines() if "same quality" in line)
    assert line == (
        f"same quality as {found['best_single']} on the held-out prompts at "
        f"{100 * found['match_cost_ratio']:.3g} % of its cost: --rule {found['match_rule']} "
        "(chosen on those prompts)"
    )
    rule = line.split("--rule ")[1].split()[0]
    routed = crossroads("route", "--router", out, "--rule", rule, "--json", "boil rice")
    assert json.loads(routed.stdout)["rule"] == rule


def test_no_costs_no_cheapest_rule(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    lines = write_table(table).read_text().splitlines()
    table.write_text("\n".join(line.rsplit(",", 1)[0] for line in lines) + "\n")
    done = crossroads("fit", "ridge", "--outcomes", table, "--out", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert "gain" in done.stdout
    assert "same quality" not in done.stdout


def test_fit_json_is_all_that_is_printed(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv")
    out = tmp_path / "router"
    done = crossroads(
        "fit", "ridge", "--outcomes", table, "--models", "astronomer,cook", "--seed", 3,
        "--rule", "tradeoff:2", "--out", out, "--json",
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["router"] == "ridge"
    assert found["models"] == ["astronomer", "cook"]
    assert (found["rule"], found["encoder"]) == ("tradeoff:2", "static")
    assert found["provenance"]["seed"] == 3
    assert found["metrics"]["quality"] > 0.9
    assert found["metrics"]["gain_low"] > 0
    assert done.stderr == ""


@pytest.mark.slow
def test_the_default_router_is_auto_and_reads_shipped_tables(tmp_path: Path) -> None:
    done = crossroads("fit", "--outcomes", "mmlu-pro:small", "--out", tmp_path / "r", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["router"] == "auto"
    assert "replayed outcomes of 2024 models" in found["provenance"]["source"]


def test_a_pool_gives_prices(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    lines = write_table(table).read_text().splitlines()
    table.write_text("\n".join(line.rsplit(",", 1)[0] for line in lines) + "\n")
    pool = tmp_path / "pool.yaml"
    pool.write_text("models: [{name: cook, price_per_call: 1}, {name: astronomer}]")
    done = crossroads(
        "fit", "ridge", "--outcomes", table, "--pool", pool, "--out", tmp_path / "r", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["metrics"]["cost_usd"] < 1


HEAD = "prompt_id,prompt,model,score,cost,output_tokens\n"
BAD = {
    "empty.csv": (b"", "not a readable CSV file"),
    "header.csv": (HEAD.encode(), "no rows"),
    "column.csv": (b"prompt_id,prompt,score\n1,x,1\n", "no column 'model'"),
    "repeat.csv": (f"{HEAD}1,x,a,1,,\n1,x,a,0,,\n".encode(), "line 3", "already in line 2"),
    "score.csv": (f"{HEAD}1,x,a,1.01,,\n".encode(), "line 2, column 'score'", "[0, 1]", "1.01"),
    "text.csv": (f"{HEAD}1,x,a,good,,\n".encode(), "line 2, column 'score'", "'good'"),
    "cost.csv": (f"{HEAD}1,x,a,1,-0.5,\n".encode(), "line 2, column 'cost'", "-0.5"),
    "nan.csv": (f"{HEAD}1,x,a,1,nan,\n".encode(), "line 2, column 'cost'", "nan"),
    "inf.csv": (f"{HEAD}1,x,a,1,inf,\n".encode(), "line 2, column 'cost'", "inf"),
    "tokens.csv": (f"{HEAD}1,x,a,1,,-4\n".encode(), "line 2, column 'output_tokens'", "-4"),
    "two.csv": (f"{HEAD}1,x,a,1,,\n1,y,b,1,,\n".encode(), "line 3, column 'prompt'", "ids"),
    "latin.csv": (HEAD.encode() + b"1,caf\xe9,a,1,,\n", "line 2: not UTF-8"),
    "cut.csv.gz": (gzip.compress(HEAD.encode() * 9)[:-9], "not a readable gzip file"),
    "image.parquet": (b"\x89PNG" * 9, "not a readable Parquet file"),
    "lines.jsonl": (b'{"prompt_id": 1}\n', "line 1", "required field 'model'"),
    "table.xlsx": (b"PK", "unknown kind of file"),
    "small.csv": (f"{HEAD}1,x,a,1,,\n".encode(), "give more distinct prompts"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_wrong_table_ends_with_one_line_and_code_1(name: str, tmp_path: Path) -> None:
    content, *parts = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    run = CliRunner().invoke(
        command, ["best-single", "--outcomes", str(path), "--out", str(tmp_path / "out")]
    )
    assert run.exception is not None
    assert getattr(run.exception, "exit_code", None) == 1, run.exception
    message = str(run.exception)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert not (tmp_path / "out").exists()


def test_wrong_tables_end_the_process_with_code_1(tmp_path: Path) -> None:
    for name in ("score.csv", "image.parquet"):
        content, *parts = BAD[name]
        (tmp_path / name).write_bytes(content)
        out = tmp_path / "out"
        done = crossroads("fit", "--outcomes", tmp_path / name, "--out", out)
        assert_refused(done, 1, name, *parts)
        assert not out.exists()


def test_a_wrongly_typed_parquet_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"prompt_id": ["1"], "model": ["a"], "score": ["1"]}), path)
    done = crossroads("fit", "--outcomes", path, "--out", tmp_path / "out")
    assert_refused(done, 1, "column 'score': expected numbers, got the type string")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--models", "cook,baker"], ["unknown model in", "'baker'"]),
        (["--models", ","], ["--models: expected names"]),
        (["--encoder", "statik"], ["unknown encoder 'statik'", "did you mean 'static'"]),
        (["--rule", "cheapest"], ["unknown decision rule 'cheapest'"]),
        (["--seed", "-1"], ["--seed"]),
        (["--unknown"], ["--unknown"]),
    ],
)
def test_wrong_usage_ends_with_one_line_and_code_2(
    options: list[str], parts: list[str], tmp_path: Path
) -> None:
    table = write_table(tmp_path / "t.csv")
    out = tmp_path / "out"
    done = crossroads("fit", "ridge", "--outcomes", table, "--out", out, *options)
    assert_refused(done, 2, *parts)
    assert not out.exists()


def test_an_unknown_router_or_a_missing_option_is_wrong_usage(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv")
    done = crossroads("fit", "ridg", "--outcomes", table, "--out", tmp_path / "out")
    assert_refused(done, 2, "unknown router 'ridg'", "did you mean 'ridge'")
    assert_refused(crossroads("fit", "ridge", "--outcomes", table), 2, "--out")
    assert_refused(crossroads("fit", "ridge", "--out", tmp_path / "out"), 2, "--outcomes")


def test_a_pool_without_the_tables_models_names_line_and_remedy(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv")
    pool = tmp_path / "pool.yaml"
    pool.write_text("models: [{name: cook}]")
    done = crossroads(
        "fit", "ridge", "--outcomes", table, "--pool", pool, "--out", tmp_path / "out"
    )
    assert_refused(done, 1, "line 3, column 'model': unknown model 'astronomer'", "--models")
    pool.write_text("models: [{name: cook, price_in: -1}]")
    done = crossroads(
        "fit", "ridge", "--outcomes", table, "--pool", pool, "--out", tmp_path / "out"
    )
    assert_refused(done, 1, "models[0].price_in: expected at least 0, got -1")


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv")
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    done = crossroads("fit", "ridge", "--outcomes", table, "--out", out)
    assert_refused(done, 1, "something else than a fitted router")
    assert (out / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--calibrate", "sdn"], 2, "did you mean 'sdm'?"),
        (["--level", "0.9"], 2, "add --calibrate sdm"),
        (["--calibrate", "sdm", "--level", "0.4"], 2, "level: expected a share in (0.5, 1]"),
        (["--calibrate", "sdm", "--level", "1.5"], 2, "--level: expected a share in (0.5, 1]"),
        (["--calibrate", "sdm"], 1, "router's choice is right on all"),
    ],
)
def test_calibration_that_makes_no_sense_is_refused(
    options: list[str], code: int, words: str, tmp_path: Path
) -> None:
    table = write_table(tmp_path / "t.csv")
    out = tmp_path / "router"
    done = crossroads("fit", "ridge", "--outcomes", table, "--out", out, *options)
    assert_refused(done, code, words)
    assert not out.exists()


def test_too_few_held_out_prompts_have_no_interval(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    rows = [f"p{n},prompt {n},{model},{(n + k) % 2}" for n in range(40) for k, model in MODELS]
    table.write_text("prompt_id,prompt,model,score\n" + "\n".join(rows) + "\n", "utf-8")
    arguments = ("fit", "best-single", "--outcomes", table, "--out", tmp_path / "router")
    shown = crossroads(*arguments).stdout
    assert "(too few held-out prompts for an interval)" in shown
    assert "gain +0.0000 [" not in shown
    found = json.loads(crossroads(*arguments, "--json").stdout)["metrics"]
    assert found["num_test"] < 30
    assert (found["gain_low"], found["gain_high"]) == (None, None)
    enough = crossroads("fit", "ridge", "--outcomes", write_table(table), "--out", tmp_path / "r")
    assert "] (" not in enough.stdout
    assert "too few" not in enough.stdout


@pytest.mark.slow
def test_fit_says_plainly_when_nothing_can_be_trusted(tmp_path: Path) -> None:
    lines = ["prompt_id,prompt,model,score"]
    for n in range(200):  # right or wrong by a coin that no prompt shows
        coin = (n * 2654435761 >> 7) % 2
        lines.append(f"p{n},question {n % 10} no {n},able,{coin}")
    table = tmp_path / "t.csv"
    table.write_text("\n".join(lines) + "\n", "utf-8")
    out = tmp_path / "router"
    done = crossroads("fit", "best-single", "--outcomes", table, "--out", out, "--calibrate", "sdm")
    assert done.returncode == 0, done.stderr
    assert "no kind of prompt reaches the level: every choice will be escalated" in done.stdout
