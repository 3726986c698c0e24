"""The survey's claim: its rules, and what it measures here."""

from __future__ import annotations

from typing import Any

import pytest

from crossroads.adapters.claims import moerging_survey
from crossroads.adapters.claims.moerging_survey import judge, run_routers, seen_wrong, undeclared
from crossroads.adapters.routers import router_class, router_names
from crossroads.adapters.survey.implementations import Departure
from crossroads.adapters.survey.inventory import row
from crossroads.core.catalog import Verdict
from tests.adapters.survey.examples import cells

GOOD = {"num_authors_methods": 26, "num_alike": 0}


@pytest.mark.parametrize(
    ("scheme", "unlike", "wrong", "not_run", "outcome"),
    [
        ({}, {}, {}, {}, "holds"),
        ({}, {}, {"a": ("depth_granularity",)}, {}, "holds in direction"),
        ({}, {}, {}, {"a": "needs more"}, "holds in direction"),
        ({"num_alike": 2}, {}, {}, {}, "holds in direction"),
        ({"num_alike": 13}, {}, {}, {}, "null"),
        ({}, {}, {"a": ("expert_aggregation",)}, {}, "fails"),
        ({}, {"a": ("user_dataset",)}, {}, {}, "fails"),
        ({"num_authors_methods": 25}, {}, {}, {}, "fails"),
    ],
)
def test_the_rules(
    scheme: dict[str, int],
    unlike: dict[str, Any],
    wrong: dict[str, tuple[str, ...]],
    not_run: dict[str, str],
    outcome: str,
) -> None:
    assert judge({**GOOD, **scheme}, unlike=unlike, wrong=wrong, not_run=not_run) == outcome


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    return moerging_survey.verify(full=False)


def test_the_claim_does_not_fail_here(verdict: Verdict) -> None:
    assert verdict.verdict in {"holds", "holds in direction"}
    assert verdict.name == "moerging-survey"
    assert verdict.measured["undeclared_departures"] == {}
    assert "expert_aggregation" not in " ".join(verdict.measured["seen_otherwise"].values())


def test_every_router_with_cells_was_run_or_is_said_not_to_be(verdict: Verdict) -> None:
    stated = {name for name in router_names() if router_class(name).cells is not None}
    assert {*verdict.measured["seen"], *verdict.measured["not_run"]} == stated
    assert "flylora" in verdict.measured["seen"]  # on experts of rank one


def test_few_methods_share_a_setting(verdict: Verdict) -> None:
    assert verdict.measured["pairs"] == 26 * 25 // 2
    assert 0 < verdict.measured["pairs_of_one_setting"] < verdict.measured["pairs"] / 10


def test_a_departure_must_be_declared_and_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    own = row("PHATGOOSE").cells
    assert undeclared("phatgoose", own) == ()
    assert undeclared("phatgoose", cells(user_dataset="Full")) == ("user_dataset",)
    departure = Departure(row="PHATGOOSE", axes={"user_dataset": "asks for more"})
    monkeypatch.setattr(moerging_survey, "DEPARTURES", {"phatgoose": departure})
    assert undeclared("phatgoose", cells(user_dataset="Full")) == ()
    assert undeclared("phatgoose", own) == ("user_dataset",)


def test_a_router_that_cannot_be_run_is_told_with_the_reason() -> None:
    runs, not_run = run_routers({"named": cells(), "phatgoose": cells()}, (0, 1))
    assert len(runs["phatgoose"]) == 2
    assert "needs 'experts'" in not_run["named"]
    assert seen_wrong(runs, "phatgoose", cells(input_granularity="Task")) == ("input_granularity",)
    assert seen_wrong(runs, "named", cells()) == ()
