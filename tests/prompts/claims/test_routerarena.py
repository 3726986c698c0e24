from __future__ import annotations

import copy
from typing import Any

import pytest

from crossroads.core.errors import UnavailableError
from crossroads.datasets.paths import data_folder
from crossroads.prompts.claims import routerarena
from crossroads.prompts.claims.routerarena import conditions
from crossroads.prompts.readers import read_outcomes
from crossroads.prompts.routerarena.figures import best_reachable_score

SOUND: dict[str, Any] = {
    "largest_error_points": 0.05,
    "single_models": {
        "good": {"accuracy": 70.0, "cost_per_1k_usd": 0.1, "arena_score": 69.0},
        "bad": {"accuracy": 50.0, "cost_per_1k_usd": 0.2, "arena_score": 51.0},
        "free": {"accuracy": 80.0, "cost_per_1k_usd": 0.0, "arena_score": 0.0},
    },
    "routers": [{"arena_scores": {"ridge": 69.0}, "oracle_best": 75.0}],
    "robustness": [{"constant": 1.0, "random": {"2": 0.52, "5": 0.19}, "pairs": 200}],
}


def broken(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SOUND), **changes}


def test_sound_figures_meet_every_condition() -> None:
    assert all(conditions(SOUND).values())


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("golden", broken(largest_error_points=0.07)),
        ("bound", broken(routers=[{"arena_scores": {"ridge": 76.0}, "oracle_best": 75.0}])),
        ("bound", broken(routers=[])),
        (
            "order",
            broken(
                single_models={
                    "good": {"accuracy": 70.0, "cost_per_1k_usd": 0.1, "arena_score": 50.0},
                    "bad": {"accuracy": 50.0, "cost_per_1k_usd": 0.2, "arena_score": 51.0},
                }
            ),
        ),
        (
            "robustness",
            broken(robustness=[{"constant": 0.99, "random": {"2": 0.5}, "pairs": 200}]),
        ),
        (
            "robustness",
            broken(robustness=[{"constant": 1.0, "random": {"2": 0.8}, "pairs": 200}]),
        ),
    ],
)
def test_each_broken_property_is_seen(name: str, measured: dict[str, Any]) -> None:
    met = conditions(measured)
    assert [key for key, held in met.items() if not held] == [name]


def test_the_recorded_models_are_in_order_and_below_the_oracle() -> None:
    try:
        table = read_outcomes(data_folder("routerarena"))
    except UnavailableError as error:
        pytest.skip(str(error))
    found = routerarena._single_models(table)
    haiku, gemini = found["claude-3-haiku-20240307"], found["gemini-2.0-flash-001"]
    assert (haiku["accuracy"], gemini["accuracy"]) == (52.34, 69.01)
    assert gemini["cost_per_1k_usd"] < haiku["cost_per_1k_usd"]
    assert gemini["arena_score"] > haiku["arena_score"]
    assert table.cost is not None
    assert 100 * best_reachable_score(table.score, table.cost) > gemini["arena_score"]


@pytest.mark.slow
def test_the_claim_holds_on_what_ships_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSROADS_DATA", "/nowhere")
    verdict = routerarena.verify(False)
    assert verdict.verdict == "holds"
    assert set(verdict.measured["seconds_for_8400_rows"]) == {"replayed", "multiple_choice"}
    assert "local experts" in verdict.data
    assert verdict.data.endswith("the arena's own rows not measured: needs routerarena")
