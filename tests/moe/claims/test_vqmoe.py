from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from crossroads.core.errors import InputError
from crossroads.moe.beds.lm import LanguageBed
from crossroads.moe.claims import vqmoe as claim
from crossroads.moe.claims.arms import Arms, run_arms
from crossroads.moe.claims.checkpoints import (
    PLACE,
    CheckpointBed,
    checkpoints_of,
    kept,
    router_inputs,
    routes_of,
    with_noise,
)
from crossroads.moe.contract import RouterInput
from crossroads.moe.routers import build_router

LOW, HIGH, WAVERING = (0.40, 0.41, 0.42), (0.80, 0.81, 0.825), (0.39, 0.45, 0.42)


def made(
    checkpoints: tuple[float, ...],
    noise: tuple[float, ...],
    *,
    beside: tuple[float, ...] = LOW,
    bpb: float = 2.0,
    certified: float = 1.0,
) -> Arms:
    coded: dict[str, Any] = {"bpb": (bpb,) * 3, "certified": (1.0, certified, 1.0)}
    linear: dict[str, Any] = {"bpb": (2.0,) * 3}
    for measure, found in (("checkpoints", checkpoints), ("noise", noise)):
        for suffix in ("", " share"):
            coded[f"{measure} discrete{suffix}"] = found
            coded[f"{measure} continuous{suffix}"] = beside
            linear[f"{measure} linear{suffix}"] = LOW
    return Arms(seeds=claim.SEEDS, figures={claim.VQ: coded, claim.TOP2: linear})


def test_it_holds_when_it_is_steadier_than_both_gates_at_the_same_quality() -> None:
    arms = made(HIGH, HIGH)
    assert claim.fewer_switches(arms, "noise") == pytest.approx(1 - 0.565 / 1.77)
    assert claim.judge(arms) == "holds"
    assert claim.judge(made(HIGH, HIGH, bpb=2.03)) == "holds"
    assert claim.judge(made(HIGH, HIGH, bpb=2.05)) == "holds in direction"
    assert claim.judge(made(HIGH, HIGH, beside=HIGH)) == "holds in direction"


def test_one_clear_difference_and_one_unclear_is_a_direction() -> None:
    assert claim.judge(made(WAVERING, HIGH)) == "holds in direction"
    assert claim.judge(made(tuple(v + 0.05 for v in LOW), HIGH)) == "holds in direction"


def test_nothing_clear_or_both_signs_is_null() -> None:
    assert claim.judge(made(WAVERING, WAVERING)) == "null"
    assert claim.judge(made(LOW, LOW)) == "null"
    assert claim.judge(made((0.1, 0.11, 0.12), HIGH)) == "null"


def test_more_switches_or_a_broken_certificate_fails() -> None:
    assert claim.judge(made((0.1, 0.11, 0.12), WAVERING)) == "fails"
    assert claim.judge(made(HIGH, HIGH, certified=0.0)) == "fails"


def test_kappa_takes_chance_out_and_gives_nothing_for_a_collapsed_route() -> None:
    a_N, b_N = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    share, kappa = kept([a_N], [b_N], 2)
    assert share == 0.75
    assert kappa == pytest.approx((0.75 - 0.5) / 0.5)
    assert kept([a_N], [a_N], 2) == (1.0, pytest.approx(1.0))
    one_N = torch.zeros(4, dtype=torch.int64)
    assert kept([one_N], [one_N], 2) == (1.0, 0.0)


def test_the_busiest_expert_is_counted_layer_by_layer() -> None:
    assert claim.busiest([torch.tensor([2, 2, 2, 0]), torch.tensor([0, 1, 2, 3])]) == 0.5 * (
        0.75 + 0.25
    )


def test_noise_has_the_asked_size_and_hits_nothing_else() -> None:
    x_BTD = 3 * torch.randn(4, 50, 16, generator=torch.Generator().manual_seed(0))
    inp = RouterInput(x_BTD=x_BTD, mask_BT=torch.ones(4, 50, dtype=torch.bool))
    noisy = with_noise(inp, 0.1, seed=1)
    ratio = (noisy.x_BTD - x_BTD).square().mean().sqrt() / x_BTD.square().mean().sqrt()
    assert float(ratio) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(noisy.x_BTD, with_noise(inp, 0.1, seed=1).x_BTD)
    assert noisy.mask_BT is inp.mask_BT


def test_routes_name_the_branches_and_skip_padding() -> None:
    mask_BT = torch.tensor([[True, True, False]])
    inp = RouterInput(x_BTD=torch.randn(1, 3, 8), mask_BT=mask_BT)
    both = routes_of([build_router("vqmoe", 8, 4).decide(inp).decision])
    assert set(both) == {"continuous", "discrete"}
    assert [len(found[0]) for found in both.values()] == [2, 2]
    assert set(routes_of([build_router("top2", 8, 4).decide(inp).decision])) == {"linear"}
    soft = build_router("soft", 8, 4).decide(inp).decision
    with pytest.raises(InputError, match="expected TokenChoice, got Dense"):
        routes_of([soft])


def test_the_certificate_of_another_codebook_is_refused() -> None:
    torch.manual_seed(0)
    router: Any = build_router("vqmoe:init_from_data=false", 8, 4)
    x_ND = torch.randn(30, 8)
    assert claim.certified(router, x_ND)
    honest = router.certified_radius
    router.certified_radius = lambda x_ND: 1.05 * honest(x_ND)
    assert not claim.certified(router, x_ND)
    router.certified_radius = lambda x_ND: 0.9 * honest(x_ND)
    assert not claim.certified(router, x_ND)


def test_a_model_remembers_its_routing_and_gives_its_router_inputs() -> None:
    bed = CheckpointBed(width=16, length=8, num_layers=2, n_experts=4)
    torch.manual_seed(0)
    model = bed.build(bed.spec("top2")).eval()
    with torch.no_grad():
        for _ in range(2):
            bed.evaluate(model, bed.config("quick"))
        inputs = router_inputs(model, bed)
    first, second = checkpoints_of(model)
    assert all(torch.equal(a, b) for a, b in zip(first["linear"], second["linear"], strict=True))
    assert [inp.layer for inp in inputs] == [0, 1]
    assert PLACE not in " ".join(model.state_dict())
    plain = LanguageBed(width=16, length=8, num_layers=2)
    with pytest.raises(InputError, match="CheckpointBed"):
        checkpoints_of(plain.build(plain.spec("dense")))


@dataclass(frozen=True, kw_only=True)
class TinyBed(CheckpointBed):
    width: int = 16
    length: int = 16
    num_layers: int = 2
    n_experts: int = 4


@pytest.mark.slow
def test_it_runs_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "SEEDS", (0, 1))
    monkeypatch.setattr(claim, "STEPS", {False: 4})
    monkeypatch.setattr(claim, "run_arms", partial(run_arms, jobs=1))
    monkeypatch.setattr(claim, "CheckpointBed", TinyBed)
    verdict = claim.verify(full=False)
    assert verdict.measured["certificate_is_exact"] is True
    assert len(verdict.measured["kappa_differences"]) == 4
    coded = verdict.measured["arms"][claim.VQ]
    assert {"bpb discrete alone", "noise discrete", "checkpoints continuous share"} <= set(coded)
    assert all(0 <= v <= 1 for v in coded["noise discrete share"])
    assert "certified" not in verdict.measured["arms"][claim.BALANCED]
