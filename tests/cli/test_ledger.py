"""``crossroads ledger``: show, export, judge and prune."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from crossroads.gateway.ledger import LedgerReader, LedgerSettings, open_ledger
from crossroads.prompts.readers import read_outcomes
from tests.cli.ledgers import CALLS, run_main, write_ledger


@pytest.fixture
def url(tmp_path: Path) -> str:
    return write_ledger(tmp_path / "l.db")


def test_show_prints_one_call_with_its_feedback(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run_main(capsys, "ledger", "show", "--ledger", url, "dec_7")
    shown = json.loads(out)
    assert code == 0
    assert shown["prompt"] == "question 7"
    assert len(shown["feedback"]) == 1
    code, out, err = run_main(capsys, "ledger", "show", "--ledger", url, "dec_none")
    assert (code, out) == (1, "")
    assert "no decision 'dec_none'" in err


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_exported_outcomes_are_a_table_the_arena_reads(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    out = tmp_path / f"o.{suffix}"
    code, told, _ = run_main(capsys, "ledger", "export", "--ledger", url, "--out", out)
    assert code == 0
    assert "of 100 prompts and 2 models, made of 300 calls" in told
    table = read_outcomes(out)
    assert len(table) == 100
    assert set(table.models) == {"small", "large"}
    assert table.has_texts
    assert table.has_costs


@pytest.mark.slow
def test_the_arena_compares_routers_on_an_exported_ledger(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.parquet"
    run_main(capsys, "ledger", "export", "--ledger", url, "--out", out)
    arguments = ["--outcomes", out, "--routers", "knn,best-single", "--seeds", 1, "--jobs", 1]
    code, board, err = run_main(
        capsys, "arena", "prompts", *arguments, "--json", "--out", tmp_path / "arena"
    )
    assert code == 0, err
    assert {row["router"] for row in json.loads(board)["rows"]} >= {"knn", "best-single"}


def test_an_export_with_one_model_a_prompt_is_fitted_on_and_judged_by_the_ledger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = write_ledger(tmp_path / "l.db", num_prompts=CALLS)
    out, router = tmp_path / "o.parquet", tmp_path / "router"
    code, told, _ = run_main(capsys, "ledger", "export", "--ledger", url, "--out", out)
    assert code == 0
    assert "no prompt was answered by several models" in told
    assert f"crossroads fit auto --outcomes {out}" in told
    code, _, err = run_main(capsys, "fit", "ridge", "--outcomes", out, "--out", router)
    assert code == 0, err
    arguments = ["--ledger", url, "--router", router, "--rule", "argmax", "--json"]
    code, found, err = run_main(capsys, "evaluate", *arguments)
    assert code == 0, err
    assert json.loads(found)["num_calls"] == CALLS


@pytest.mark.parametrize("what", ["outcomes", "calls"])
def test_a_file_that_is_there_is_replaced_only_if_asked(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    out = tmp_path / "x.parquet"
    out.write_text("mine")
    arguments = ["ledger", "export", "--ledger", url, "--out", out, "--what", what]
    code, _, err = run_main(capsys, *arguments)
    assert code == 1
    assert "exists; choose another name or pass --overwrite" in err
    assert out.read_text() == "mine"
    assert run_main(capsys, *arguments, "--overwrite")[0] == 0
    assert out.stat().st_size > 100


@pytest.mark.parametrize("what", ["outcomes", "calls"])
def test_no_folder_is_made_for_an_export(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    out = tmp_path / "typo" / "x.parquet"
    arguments = ["--ledger", url, "--out", out, "--what", what]
    code, _, err = run_main(capsys, "ledger", "export", *arguments)
    assert code == 1
    assert f"there is no folder {out.parent}; make it, or correct --out" in err
    assert not out.parent.exists()


def test_calls_are_exported_whole(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "calls.jsonl"
    arguments = ["--ledger", tmp_path / "l.db", "--out", out, "--what", "calls"]
    code, told, _ = run_main(capsys, "ledger", "export", *arguments)
    assert (code, told) == (0, f"300 calls in {out}\n")
    assert len(out.read_bytes().splitlines()) == 300


def test_summary_prints_tables_for_people(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_main(capsys, "ledger", "summary", "--ledger", url, "--since", "1h")
    assert code == 0
    first, second = out.splitlines()[:2]
    assert first.startswith("300 calls since 20")
    assert "UTC: " in first
    assert re.match(r"saved [\d.]+ USD against always asking large, as expected: ", second)
    words = [line.split() for line in out.splitlines() if line]
    titles = [line[0] for line in words if line[1:3] == ["calls", "errors"]]
    assert titles == ["model", "policy", "key"]
    (large,) = [line for line in words if line[0] == "large"]
    assert int(large[1]) * 0.01 == pytest.approx(float(large[-1]))
    assert ["all", "100", "100", "100", "100"] in words
    assert "{" not in out


def test_what_routing_cost_more_is_no_negative_saving(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run_main(capsys, "ledger", "summary", "--ledger", url, "--best-model", "small")
    assert code == 0
    (told,) = [line for line in out.splitlines() if "always asking small" in line]
    found = re.match(r"cost ([\d.]+) USD more than always asking small, as expected: ", told)
    assert found is not None
    assert float(found[1]) > 0


def test_savings_against_a_model_without_known_costs_are_refused(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ledger", "summary", "--best-model", "larg", "--ledger"]
    code, out, err = run_main(capsys, *arguments, url)
    assert (code, out) == (1, "")
    assert "--best-model: unknown model with costs in the ledger 'larg'; did you mean 'larg" in err
    empty = f"sqlite:{tmp_path / 'empty.db'}"
    open_ledger(LedgerSettings(url=empty)).close()
    code, _, err = run_main(capsys, *arguments, empty)
    assert code == 1
    assert "no decision knew the cost of 'larg'" in err


def test_summary_of_an_empty_ledger_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = f"sqlite:{tmp_path / 'l.db'}"
    open_ledger(LedgerSettings(url=empty)).close()
    code, out, _ = run_main(capsys, "ledger", "summary", "--ledger", empty)
    assert (code, out.startswith("0 calls: 0 USD, 0 errors"), len(out.splitlines())) == (0, True, 1)


def test_summary_prints_all_figures_as_json(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ledger", "summary", "--ledger", url, "--since", "1h", "--json"]
    code, out, _ = run_main(capsys, *arguments)
    figures = json.loads(out)
    assert code == 0
    assert figures["calls"] == 300
    assert figures["best_model"] == "large"
    assert figures["saved_usd"] > 0


def test_prune_keeps_so_many_days(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ledger", "prune", "--ledger", url, "--days"]
    assert run_main(capsys, *arguments, "1")[1] == "0 rows deleted\n"
    assert run_main(capsys, *arguments, "0")[1] == "600 rows deleted\n"


def test_feedback_is_added_from_lines_all_or_none(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = '{"decision_id": "dec_1", "score": 0.5, "source": "judge"}\n'
    file = tmp_path / "f.jsonl"
    for wrong, problem in (
        ('{"decision_id": "dec_x", "score": 1}\n', "line 2: no decision 'dec_x'"),
        ('{"decision_id": "dec_2", "score": 7}\n', "line 2: 'score' must be"),
        ("{\n", 'line 2: no JSON; expected one object a line, such as {"decision_id"'),
        ('{"decision_id": "dec_2", "preference": {"over": "dec_x"}}\n', "no decision 'dec_x'"),
    ):
        file.write_text(good + wrong)
        code, _, err = run_main(capsys, "ledger", "feedback", "--ledger", url, file)
        assert code == 1
        assert problem in err
    file.write_text(good)
    code, out, _ = run_main(capsys, "ledger", "feedback", "--ledger", url, file)
    assert (code, out) == (0, "1 judgement added\n")
    with LedgerReader(url) as reader:
        entry = reader.get("dec_1")
    assert entry is not None
    assert [each.source for each in entry.feedback] == ["user", "judge"]


def test_a_ledger_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.db"
    code, _, err = run_main(capsys, "ledger", "show", "--ledger", missing, "dec_1")
    assert code == 1
    assert "none.db" in err
    assert not missing.exists()
