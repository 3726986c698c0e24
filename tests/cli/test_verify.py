"""``crossroads verify``."""

from __future__ import annotations

import json
import re
import sys
import types
from dataclasses import replace

import pytest
from click.testing import CliRunner, Result

from crossroads.cli import main
from crossroads.cli.verify import command
from crossroads.core import catalog
from crossroads.core.catalog import Verdict
from crossroads.core.errors import UnavailableError, UsageError


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, catch_exceptions=False)


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four systems: one that holds, one that fails, one without its data, one planned."""
    module = types.ModuleType("probe_claims")

    def verdict_of(name: str, word: str):
        def measure(full: bool) -> Verdict:
            return Verdict(
                name=name,
                verdict=word,
                paper={"gain": 0.1},
                measured={"gain": 0.2, "long": full, "runs": [1, 2]},
                seeds=(0, 1),
                data="toy",
            )

        return measure

    def no_data(full: bool) -> Verdict:
        raise UnavailableError("data set 'x' is not on this machine")

    module.good = verdict_of("good", "holds")  # type: ignore[attr-defined]
    module.bad = verdict_of("bad", "fails")  # type: ignore[attr-defined]
    module.absent = no_data  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "probe_claims", module)
    entry = catalog.card("thor")
    cards = [
        replace(entry, name=name, verify=f"probe_claims:{name}")
        for name in ("good", "bad", "absent")
    ]
    later = replace(entry, name="later", verify="")
    monkeypatch.setattr(catalog, "load_cards", lambda: (*cards, later))


@pytest.mark.usefixtures("claims")
def test_json_holds_the_documented_fields_and_nothing_else_is_on_stdout() -> None:
    result = run("good", "--full", "--json")
    assert result.exit_code == 0
    (row,) = json.loads(result.stdout)
    assert row.pop("seconds") > 0
    assert row == {
        "name": "good",
        "verdict": "holds",
        "paper": {"gain": 0.1},
        "measured": {"gain": 0.2, "long": True, "runs": [1, 2]},
        "seeds": [0, 1],
        "data": "toy",
    }


@pytest.mark.usefixtures("claims")
def test_the_report_shows_verdict_figures_seeds_and_data() -> None:
    result = run("good")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("good: holds (")
    assert "  paper     gain = 0.1" in lines
    assert "  measured  gain = 0.2" in lines
    assert "  measured  runs = 1, 2" in lines
    assert "  seeds     0, 1" in lines
    assert lines[-1] == "  data      toy"


def probe(monkeypatch: pytest.MonkeyPatch, **measured: object) -> list[str]:
    """Return the report on a claim with these figures."""
    found = Verdict(name="good", verdict="holds", paper={}, measured=measured, data="toy")
    monkeypatch.setattr(sys.modules["probe_claims"], "good", lambda full: found)
    return run("good").stdout.splitlines()[1:-1]


@pytest.mark.usefixtures("claims")
def test_numbers_are_short_and_what_was_not_measured_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = probe(
        monkeypatch,
        loss=2.0486508254855322,
        size=31e9,
        error=2.220446049250313e-16,
        gap=None,
        gain={"mean": 0.009746, "low": -0.00662, "high": 0.02611, "per_seed": [0.1, 0.2]},
        conditions={"a": True, "b": "not measured: needs x", "c": False},
        many=list(range(20)),
    )
    assert report == [
        "  measured  loss = 2.049",
        "  measured  size = 31,000,000,000",
        "  measured  error = 2.22e-16",
        "  measured  gap = not measured",
        "  measured  gain = 0.009746 [-0.00662, 0.02611]",
        "  measured  conditions: a = yes, b = not measured: needs x, c = no",
        "  measured  many = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, ... (4 more)",
    ]


@pytest.mark.usefixtures("claims")
def test_nested_figures_are_tables_or_indented_lines_with_seeds_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = probe(
        monkeypatch,
        models={
            "small": {"accuracy": 0.5, "cost": {"mean": 1.23456, "half_width": 0.2049}},
            "larger": {"accuracy": 0.75, "cost": {"mean": 2.0, "half_width": None}},
        },
        per_seed=[
            {"n": 101, "score": {"knn": 77.92, "points": [{"x": 1}, {"x": 2}]}},
            {"n": 117, "score": {"knn": 84.21, "points": [{"x": 1}]}},
        ],
    )
    assert report == [
        "  measured  models",
        "                        accuracy  cost",
        "                small   0.5       1.235 +/- 0.2",
        "                larger  0.75      2",
        "  measured  per_seed",
        "                n = 101, 117",
        "                score",
        "                  knn = 77.92, 84.21",
        "                  points = 2 entries; 1 entries",
    ]


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch, claims: None) -> None:
    """The second claim is stopped by Ctrl-C."""

    def stop(full: bool) -> Verdict:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["probe_claims"], "bad", stop)


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize(("options", "printed"), [([], "good: holds ("), (["--json"], "")])
def test_finished_verdicts_outlive_ctrl_c_and_json_is_never_half(
    options: list[str], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["verify", "good", "bad", *options])
    assert end.value.code == 130
    output = capsys.readouterr()
    assert output.out.startswith(printed)
    assert bool(output.out) == bool(printed)
    assert output.err.strip() == "stopped"


@pytest.mark.usefixtures("claims")
def test_each_verdict_is_printed_before_the_next_claim_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed: list[str] = []
    measure = sys.modules["probe_claims"].bad

    def watch(full: bool) -> Verdict:
        printed.append(capsys.readouterr().out)
        verdict: Verdict = measure(full)
        return verdict

    monkeypatch.setattr(sys.modules["probe_claims"], "bad", watch)
    with pytest.raises(SystemExit):
        main(["verify", "good", "bad"])
    assert printed[0].startswith("good: holds (")


@pytest.mark.usefixtures("claims")
def test_a_terminal_is_told_which_claim_is_measured_and_how_long_it_took(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(SystemExit):
        main(["verify", "good", "bad", "--json"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "measuring good (1 of 2) ..."
    assert re.fullmatch(r"measured good in \d+\.\d s", lines[1])
    assert lines[2] == "measuring bad (2 of 2) ..."


@pytest.mark.usefixtures("claims")
def test_a_claim_that_fails_is_reported_and_exits_with_one() -> None:
    result = run("good", "bad", "--json")
    assert result.exit_code == 1
    assert [row["verdict"] for row in json.loads(result.stdout)] == ["holds", "fails"]


@pytest.mark.usefixtures("claims")
def test_a_claim_that_cannot_be_measured_stops_no_other_but_exits_with_one() -> None:
    result = run("absent", "good", "--json")
    assert result.exit_code == 1
    assert [row["name"] for row in json.loads(result.stdout)] == ["good"]
    assert result.stderr == "error: absent: data set 'x' is not on this machine\n"


@pytest.mark.usefixtures("claims")
def test_all_measures_whatever_can_be_and_counts_the_planned() -> None:
    result = run("--all", "--json")
    assert [row["name"] for row in json.loads(result.stdout)] == ["good", "bad"]
    assert "1 systems are planned" in result.stderr


@pytest.mark.usefixtures("claims")
def test_a_system_named_twice_is_measured_once() -> None:
    assert len(json.loads(run("good", "good", "--json").stdout)) == 1


@pytest.mark.usefixtures("claims")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected system names or --all"),
        (["good", "--all"], "and not both"),
        (["god"], "did you mean 'good'"),
        (["good", "later"], "'later' is planned"),
    ],
)
def test_wrong_usage_is_refused_before_anything_runs(arguments, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(*arguments)


def test_router_arena_verifies_as_shipped() -> None:
    result = run("routerarena", "--json")
    assert result.exit_code == 0
    (row,) = json.loads(result.stdout)
    assert row["verdict"] == "holds"
    assert row["measured"]["largest_error_points"] <= row["paper"]["tolerance_points"]
