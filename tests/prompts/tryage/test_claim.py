"""The claim's own machinery at a tiny size: two kinds of generated text, two sizes of experts."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra 'neural' is not installed")

from crossroads.core.errors import UnavailableError
from crossroads.prompts.claims import tryage
from crossroads.prompts.tryage import experts
from tests.prompts.tryage.samples import corpora


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tryage.Library:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROSSROADS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(experts, "BASE", experts.Shape(layers=1, width=16, heads=2, context=32))
        patch.setattr(experts, "SMALL", experts.Shape(layers=1, width=8, heads=2, context=32))
        how = experts.Schedule(steps=80, batch=8, rate=1e-2)
        return tryage.build_library(corpora(), per_domain=60, seed=0, schedule=how)


@pytest.mark.slow
def test_both_sizes_of_each_expert_are_in_the_pool(library: tryage.Library) -> None:
    assert library.pool.names == ("letters", "digits", "letters-small", "digits-small")
    assert library.losses.shape == (120, 4)
    assert np.isfinite(library.losses).all()


@pytest.mark.slow
def test_the_router_finds_the_expert_without_being_told_the_kind(library: tryage.Library) -> None:
    row = tryage.measure_seed(library, seed=0)
    assert row["tryage"]["agreement"] > 0.9
    assert row["tryage"]["gap_closed"] > 0.8
    assert row["oracle"]["regret"] == pytest.approx(0.0, abs=1e-9)
    assert row["random"]["agreement"] == pytest.approx(0.5)
    assert row["best_single"]["gap_closed"] == 0.0


@pytest.mark.slow
def test_the_weight_of_size_trades_loss_for_parameters(library: tryage.Library) -> None:
    row = tryage.measure_seed(library, seed=1)
    assert row["sizes_never_rise"]
    assert row["worst_excess_over_mixing"] <= 1e-9
    smallest = min(card.parameters or 0.0 for card in library.pool)
    assert row["front"][-1]["parameters"] == smallest
    losses = [point["loss"] for point in row["front"]]
    assert losses == sorted(losses)


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_the_verdict_is_plain_data_and_full_trains_a_pool_a_seed(
    full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*given: object) -> np.ndarray:
        raise UnavailableError("model file is missing; run: pip install it")

    monkeypatch.setenv("CROSSROADS_CACHE", str(tmp_path))
    monkeypatch.setattr(experts, "BASE", experts.Shape(layers=1, width=16, heads=2, context=32))
    monkeypatch.setattr(experts, "SMALL", experts.Shape(layers=1, width=8, heads=2, context=32))
    monkeypatch.setattr(experts, "Schedule", partial(experts.Schedule, steps=20))
    monkeypatch.setattr(tryage, "load_corpora", corpora)
    monkeypatch.setattr(tryage, "_replayed", lambda part: {"part": part})
    monkeypatch.setattr(tryage, "choose_by_asking", silent)
    found = json.loads(json.dumps(tryage.verify(full).to_dict()))
    assert found["seeds"] == [row["seed"] for row in found["measured"]["per_seed"]] == [0, 1, 2]
    assert found["measured"]["mean"]["oracle"]["agreement"]["mean"] == 1.0
    assert len(list(tmp_path.rglob("*.npz"))) == 4 * (3 if full else 1)
    told = "not measured: model file is missing; run: pip install it"
    assert found["measured"].get("asked_smollm2") == (told if full else None)


FINE = {
    "tryage": {"agreement": 0.8, "gap_closed": 0.9},
    "cards": {"agreement": 0.3},
    "sizes_never_rise": True,
    "worst_excess_over_mixing": -0.1,
    "best_excess_over_mixing": -0.2,
}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "holds"),
        ({"cards": {"agreement": 0.41}}, "holds in direction"),
        ({"tryage": {"agreement": 0.8, "gap_closed": 0.79}}, "holds in direction"),
        ({"worst_excess_over_mixing": 0.1}, "holds in direction"),
        ({"cards": {"agreement": 0.8}}, "null"),
        ({"tryage": {"agreement": 0.8, "gap_closed": -0.1}}, "null"),
        ({"tryage": {"agreement": 0.8, "gap_closed": -2.0}}, "fails"),
        ({"sizes_never_rise": False}, "fails"),
    ],
)
def test_the_verdict_follows_the_rules(changes: dict[str, Any], verdict: str) -> None:
    assert tryage.judge([FINE, {**FINE, **changes}]) == verdict


def test_the_claim_imports_without_torch() -> None:
    code = "import sys, crossroads.prompts.claims.tryage; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
