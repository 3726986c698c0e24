"""``crossroads evaluate``: candidates, refusals, the page."""

from __future__ import annotations

import json
import re
import time
from contextlib import closing
from pathlib import Path

import pytest

from crossroads.gateway.contracts import Record
from crossroads.gateway.ledger import Feedback, LedgerSettings, open_ledger
from tests.cli.ledgers import COSTS, QUALITY, run_main, write_ledger


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
    assert "on 0 calls the served policy was less than half as likely" in out  # 0.5 is no twice 0.3
    assert "<svg" in (tmp_path / "evaluation.html").read_text("utf-8")


def test_rewards_are_shown_as_far_as_they_can_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = f"sqlite:{tmp_path / 'l.db'}"
    with closing(open_ledger(LedgerSettings(url=here))) as ledger:
        for n, (model, propensity) in enumerate([("a", 0.2), ("a", 0.2), ("b", 0.8)] * 8):
            record = Record(
                decision_id=f"dec_{n}",
                request_id=f"req_{n}",
                time=time.time(),
                policy="auto",
                chosen=model,
                model=model,
                status=200,
                is_complete=True,
                propensity=propensity,
                probabilities={"a": 0.2, "b": 0.8},
            )
            ledger.append(record)
            ledger.append_feedback(Feedback(decision_id=record.decision_id, score=1.0))
    arguments = ["evaluate", "--ledger", here, "--policy", "always:a"]
    found = json.loads(run_main(capsys, *arguments, "--json")[1])
    assert found["value"]["ips"]["value"] > 1
    code, out, _ = run_main(capsys, *arguments)
    assert code == 0
    table = out[: out.index("outside [0, 1]")]
    rewards = [line.split("]")[0] for line in table.splitlines() if "ips" in line]
    numbers = [float(n) for line in rewards for n in re.findall(r"\d+\.?\d*(?:e-\d+)?", line)]
    assert numbers
    assert all(0 <= number <= 1 for number in numbers)
    assert "shown at its nearer end: reward by ips" in out


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


def test_a_model_that_the_ledger_lacks_is_failed_work(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_main(capsys, "evaluate", "--ledger", url, "--policy", "always:huge")
    assert (code, out) == (1, "")
    assert f"ledger {url}: unknown model in the ledger 'huge'" in err


def test_a_router_of_other_models_is_told_so_and_not_to_explore(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router = tmp_path / "router"
    run_main(capsys, "fit", "best-single", "--outcomes", "local", "--out", router)
    code, out, err = run_main(capsys, "evaluate", "--ledger", url, "--router", router)
    assert (code, out) == (1, "")
    assert "none of the models of router router (" in err
    assert "is in the ledger, which knows large, small; give a router fitted on these" in err


def write_billed(path: Path, factor: float, *, small: int = 2) -> str:
    """Write calls billed ``factor`` times what was expected; ``small`` of 10 go to that model."""
    ledger = open_ledger(LedgerSettings(url=f"sqlite:{path}"))
    for n in range(200):
        model = "small" if n % 10 < small else "large"
        record = Record(
            decision_id=f"dec_{n}",
            request_id=f"req_{n}",
            time=time.time() - 200 + n,
            policy="auto",
            chosen=model,
            model=model,
            status=200,
            is_complete=True,
            propensity=0.8 if model == "large" else 0.2,
            probabilities={"large": 0.8, "small": 0.2},
            costs=COSTS,
            cost_usd=COSTS[model] * factor,
        )
        ledger.append(record)
        ledger.append_feedback(Feedback(decision_id=record.decision_id, score=float(n % 3 == 0)))
    ledger.close()
    return f"sqlite:{path}"


@pytest.mark.parametrize("factor", [0.01, 1.0, 5.0])
def test_bills_that_are_not_what_was_expected_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: float
) -> None:
    url = write_billed(tmp_path / "l.db", factor)
    arguments = ["--ledger", url, "--policy", "always:small"]
    told = json.loads(run_main(capsys, "evaluate", *arguments, "--json")[1])["warnings"]
    found = [warning for warning in told if "times what was expected" in warning]
    assert len(found) == (factor != 1.0)
    assert all(f"billed {factor:g} times" in warning for warning in found)


def test_no_cost_is_shown_below_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = write_billed(tmp_path / "l.db", 0.01, small=6)  # more of them than was recorded: dr < 0
    arguments = ["evaluate", "--ledger", url, "--policy", "always:small"]
    found = json.loads(run_main(capsys, *arguments, "--json")[1])
    assert found["cost"]["dr"]["value"] < 0
    _, out, _ = run_main(capsys, *arguments)
    assert "below 0, and shown as 0: USD a call by dr" in out
    rows = [line.split()[1] for line in out.splitlines() if line.split()[:1] == ["dr"]]
    assert rows[1] == "0"


def test_what_nobody_judged_cannot_be_evaluated(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--ledger", url, "--policy", "uniform", "--judge", "nobody"]
    code, _, err = run_main(capsys, "evaluate", *arguments)
    assert code == 1
    assert "300 not judged" in err
