"""``crossroads verify``."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace

import pytest
from click.testing import CliRunner, Result

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
