"""The committed figures of post-hoc routers over the shipped experts, and the levels they reach."""

from __future__ import annotations

import hashlib
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from crossroads.adapters.collection.shipped import MANIFEST, shipped_folder
from crossroads.adapters.collection.tasks import task_names
from crossroads.core.errors import UnavailableError

RESULT = Path(__file__).parents[3] / "benchmarks" / "results" / "adapters-levels.json"


LEVELS = {"phatgoose top-2": 0.70, "average activation top-2": 0.50}


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    if not RESULT.is_file():
        pytest.skip("no figures yet: run python benchmarks/adapters/levels.py")
    found: dict[str, Any] = json.loads(RESULT.read_text("utf-8"))
    return found


def _mean(result: dict[str, Any], arm: str, draw: int) -> float:
    return statistics.fmean(
        result["arms"][arm][task]["nll"][draw] for task in task_names(held_in=True)
    )


def _share(result: dict[str, Any], arm: str) -> float:
    shares = []
    for draw in range(len(result["seeds"])):
        low, high = (_mean(result, end, draw) for end in ("oracle", "uniform"))
        shares.append((high - _mean(result, arm, draw)) / (high - low))
    return statistics.median(shares)


def test_figures_are_those_of_the_shipped_experts(result: dict[str, Any]) -> None:
    try:
        manifest = shipped_folder() / MANIFEST
    except UnavailableError as error:
        pytest.skip(str(error))
    assert result["collection"] == hashlib.sha256(manifest.read_bytes()).hexdigest()


def test_every_expert_beats_the_base_model_on_its_own_task(result: dict[str, Any]) -> None:
    for task in task_names(held_in=True):
        own, base = (result["arms"][arm][task]["nll"] for arm in ("oracle", "base"))
        assert all(a < b for a, b in zip(own, base, strict=True)), task


@pytest.mark.parametrize(("arm", "wanted"), LEVELS.items())
def test_verdicts_follow_from_the_figures(result: dict[str, Any], arm: str, wanted: float) -> None:
    told = result["levels"][arm]
    assert told["wanted"] == wanted
    assert told["reached"] == pytest.approx(_share(result, arm), abs=2e-3)  # rounded losses
    assert told["holds"] is (told["reached"] >= wanted)


@pytest.mark.parametrize(("arm", "wanted"), LEVELS.items())
def test_levels_are_reached(result: dict[str, Any], arm: str, wanted: float) -> None:
    assert _share(result, arm) >= wanted
