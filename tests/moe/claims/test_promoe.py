from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from crossroads.core.routed import routed_layers
from crossroads.moe.beds import diffusion
from crossroads.moe.beds.diffusion import DiffusionBed
from crossroads.moe.claims import promoe
from crossroads.moe.claims.arms import Arms
from crossroads.moe.claims.promoe import alive, conditional_load, judge, mixed_answer, two_steps
from tests.moe.claims.small import made_up, shorten

GOOD: dict[str, dict[str, Any]] = {
    "promoe": {"error": 0.5, "cosine": -0.2, "alive": 4.0, "two_steps": 1.0, "frechet": 3.0},
    "no contrastive loss": {"error": 0.5, "cosine": -0.1, "alive": 3.5, "two_steps": 1.0},
    "token choice": {"error": 0.5, "frechet": 4.0},
    "dense": {"error": 0.5},
}


def ddpm(error: float = 0.3) -> Arms:
    return made_up({"promoe": {"error": error, "two_steps": 1.0}, "dense": {"error": 0.3}})


def judged(noise_error: float = 0.3, **changes: Any) -> str:
    flow = made_up({**GOOD, "promoe": {**GOOD["promoe"], **changes}})
    return judge(flow, ddpm(noise_error))


def test_every_rule_met_holds() -> None:
    assert judged() == "holds"


def test_a_run_too_short_to_draw_is_judged_by_its_error() -> None:
    promoe_alone = {k: v for k, v in GOOD["promoe"].items() if k != "frechet"}
    assert judge(made_up({**GOOD, "promoe": promoe_alone}), ddpm()) == "holds"


def test_worse_drawing_or_worse_noise_leaves_the_direction() -> None:
    assert judged(frechet=5.0) == "holds in direction"
    assert judged(noise_error=0.31) == "holds in direction"


@pytest.mark.parametrize(
    "change",
    [{"cosine": (-0.2, 0.0, -0.2)}, {"alive": (4.0, 3.0, 4.0)}, {"error": (0.5, 0.5, 0.6)}],
)
def test_a_mixed_mechanism_or_noisy_error_is_null(change: dict[str, Any]) -> None:
    assert judged(**change) == "null"


@pytest.mark.parametrize(
    "change", [{"two_steps": (1.0, 0.0, 1.0)}, {"cosine": 0.1}, {"error": (0.6, 0.61, 0.59)}]
)
def test_a_broken_step_closer_prototypes_or_clearly_worse_fails(change: dict[str, Any]) -> None:
    assert judged(**change) == "fails"


def test_experts_below_a_tenth_of_the_mean_load_are_dead() -> None:
    assert alive(np.array([0.5, 0.25, 0.23, 0.02])) == 3
    assert alive(np.full(4, 0.25)) == 4


@pytest.mark.parametrize("router", ["promoe", "promoe:choice=expert"])
def test_the_two_steps_are_told_apart_and_a_swap_is_noticed(router: str) -> None:
    bed = DiffusionBed()
    model = bed.build(replace(bed.spec(router), n_experts=5)).eval()
    output = mixed_answer(model)
    n_routed = routed_layers(model)[0].routers[0].n_routed
    assert n_routed == 4
    assert two_steps(output, n_routed)
    assert not two_steps(output, n_routed - 1)


def test_the_load_leaves_out_images_without_condition() -> None:
    bed = DiffusionBed()
    model = bed.build(replace(bed.spec("promoe:choice=expert"), n_experts=5)).eval()
    load_E, weight = conditional_load(mixed_answer(model).records[0].decisions[0])
    assert load_E.tolist() == [0.25] * 4  # every routed expert takes its share of every image
    assert 0 < weight < 1


def test_training_moves_every_figure_of_a_diffusion_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = DiffusionBed()
    model = bed.build(replace(bed.spec("promoe"), n_experts=5)).eval()
    with torch.no_grad():
        found = promoe.inspect(model, bed, bed.config("quick"))
        assert found["two_steps"] == 1.0
        for layer in routed_layers(model):
            layer.routers[0].prototypes.copy_(torch.ones(4, 64))
        again = promoe.inspect(model, bed, bed.config("quick"))
    assert again["cosine"] == pytest.approx(1.0)
    assert again["alive"] == 1.0  # equal scores: the lowest number takes all
    assert found["cosine"] < 0.5


@pytest.mark.slow
def test_verify_reports_both_objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion, "HELD_OUT_DRAWS", 1)
    shorten(monkeypatch, promoe, DiffusionBed)
    found = promoe.verify(full=False)
    assert found.measured["two_steps"]
    assert set(found.measured["rectified_flow"]) == set(promoe.FLOW_ARMS)
    assert set(found.measured["ddpm"]) == set(promoe.DDPM_ARMS)
