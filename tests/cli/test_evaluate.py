"""``crossroads evaluate``: candidates, refusals, the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.ledgers import QUALITY, run_main, write_ledger


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_ledger(tmp_path_factory.mktemp("ledger") / "l.db")


@pytest.mark.parametrize(
    "candidate",
    [
        ["--policy", "always:large"],
        ["--rule", "argmax"],
        ["--rule", "min-quality:0.8"],
        ["--policy", "split:large=1,small=0"],
    ],
)
def test_a_candidates_estimates_cover_what_it_would_have_earned(
    url: str, candidate: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run_main(capsys, "evaluate", "--ledger", url, *candidate, "--json")
    found = json.loads(out)
    assert code == 0
    for name in ("ips", "snips", "dr"):
        assert found["value"][name]["low"] < QUALITY["large"] < found["value"][name]["high"]
        assert found["difference"][name]["low"] > 0
    assert found["expected_cost"]["value"] == pytest.approx(0.01)
    assert found["shares"] == {"large": 1.0, "small": 0.0}


def test_the_terminal_shows_estimates_with_intervals_and_the_page_is_written(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--ledger", url, "--policy", "uniform", "--out", tmp_path]
    code, out, _ = run_main(capsys, "evaluate", *arguments)
    assert code == 0
    assert "uniform" in out
    for name in ("ips", "snips", "clipped_ips", "dm", "dr", "switch_dr"):
        assert name in out
    assert "300 judged calls" in out
    assert "<svg" in (tmp_path / "evaluation.html").read_text("utf-8")


def test_a_fitted_router_is_a_candidate(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes, router = tmp_path / "o.parquet", tmp_path / "router"
    run_main(capsys, "ledger", "export", "--ledger", url, "--out", outcomes)
    code, _, err = run_main(capsys, "fit", "ridge", "--outcomes", outcomes, "--out", router)
    assert code == 0, err
    arguments = ["--ledger", url, "--router", router, "--rule", "argmax", "--json"]
    code, out, err = run_main(capsys, "evaluate", *arguments)
    assert code == 0, err
    assert json.loads(out)["candidate"] == "router under argmax"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "no candidate"),
        (["--policy", "sometimes"], "expected always:MODEL"),
        (["--policy", "split:a"], "expected always:MODEL"),
        (["--policy", "uniform", "--rule", "argmax"], "leave out"),
        (["--rule", "cheapest"], "unknown decision rule"),
        (["--policy", "always:huge"], "unknown model"),
        (["--policy", "uniform", "--since", "soon"], "--since"),
    ],
)
def test_wrong_calls_are_refused_on_one_line(
    url: str, arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_main(capsys, "evaluate", "--ledger", url, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert problem in err
    assert err.count("\n") == 1


def test_what_nobody_judged_cannot_be_evaluated(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--ledger", url, "--policy", "uniform", "--judge", "nobody"]
    code, _, err = run_main(capsys, "evaluate", *arguments)
    assert code == 1
    assert "300 not judged" in err
