from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch

from crossroads.core.routed import routed_layers
from crossroads.moe.claims import yuan_attention_router as claim
from crossroads.moe.claims.arms import Arms, run_arms
from crossroads.moe.contract import RouterInput
from crossroads.moe.routers import build_router

BASE = (3.00, 3.10, 3.05)
LOWER = (2.90, 3.01, 2.95)
HIGHER = (3.10, 3.19, 3.16)
WAVERING = (2.80, 3.20, 3.04)


def made(
    bpb: tuple[float, ...],
    *,
    own_size: tuple[float, ...] = BASE,
    accuracy: float = 0.42,
    exact: float = 1.0,
) -> Arms:
    def figures(values: tuple[float, ...], right: float) -> dict[str, Any]:
        return {"bpb": values, "accuracy": (right,) * 3, "exact": (exact,) * 3}

    return Arms(
        seeds=claim.SEEDS,
        figures={
            claim.ATTENTION: figures(bpb, accuracy),
            claim.LINEAR: figures(BASE, 0.40),
            claim.OWN_SIZE: figures(own_size, 0.40),
        },
    )


def test_it_holds_below_both_gates_with_the_papers_gain_of_accuracy() -> None:
    assert claim.judge(made(LOWER)) == "holds"
    assert claim.gain(made(LOWER)) == pytest.approx(0.05)


def test_below_the_linear_gate_with_less_gain_is_a_direction() -> None:
    assert claim.judge(made(LOWER, accuracy=0.41)) == "holds in direction"
    assert claim.judge(made(LOWER, own_size=WAVERING)) == "holds in direction"


def test_no_clear_difference_or_one_that_size_alone_explains_is_null() -> None:
    assert claim.judge(made(BASE)) == "null"
    assert claim.judge(made(WAVERING)) == "null"
    assert claim.judge(made(LOWER, own_size=LOWER)) == "null"
    slightly = tuple(value + 0.01 for value in BASE)  # clear, but within half a per cent
    assert claim.judge(made(slightly)) == "null"


def test_clearly_above_the_linear_gate_or_a_broken_property_fails() -> None:
    assert claim.judge(made(HIGHER)) == "fails"
    assert claim.judge(made(LOWER, exact=0.0)) == "fails"


def view(seed: int = 0) -> RouterInput:
    x_BTD = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(seed))
    return RouterInput(x_BTD=x_BTD, mask_BT=torch.ones(4, 6, dtype=torch.bool))


def test_the_routers_properties_are_exact_and_their_breaking_is_seen() -> None:
    torch.manual_seed(0)
    router: Any = build_router("attention", 16, 4)
    with torch.no_grad():
        assert claim.exact(router, view())
        honest = router.score
        router.score = lambda inp: 20 * honest(inp)  # beyond the values
        assert not claim.exact(router, view())
        router.score = lambda inp: honest(inp) + inp.x_BTD.mean() * 1e-2  # leans on other tokens
        assert not claim.exact(router, view())


def test_spread_and_sharpness_of_indifferent_experts_are_zero_and_one_over_e() -> None:
    torch.manual_seed(0)
    router: Any = build_router("attention", 16, 4)
    with torch.no_grad():
        before = claim.spread(router, view()), claim.sharpness(router, view())
        router.query.weight.zero_()
        after = claim.spread(router, view()), claim.sharpness(router, view())
    assert after == (pytest.approx(0, abs=1e-6), pytest.approx(0.25))
    assert before[0] > 0.01 and before[1] > 0.3


def test_the_gate_of_two_layers_is_as_large_as_the_attention_and_starts_beside_the_same_rest() -> (
    None
):
    bed = claim.GateBed()
    models = {}
    for name, arm in claim.ARMS.items():
        torch.manual_seed(0)
        models[name] = bed.build(arm.spec(bed))
    sizes = {
        name: sum(p.numel() for p in routed_layers(model)[0].routers[0].parameters())
        for name, model in models.items()
    }
    assert sizes[claim.OWN_SIZE] == pytest.approx(sizes[claim.ATTENTION], rel=0.03)
    assert sizes[claim.ATTENTION] == 3 * sizes[claim.LINEAR]
    first, *others = (dict(model.named_parameters()) for model in models.values())
    rest = [name for name in first if "ffn" not in name]
    assert len(rest) > 5
    assert all(torch.equal(first[name], other[name]) for other in others for name in rest)


def test_a_gate_of_two_layers_decides_token_by_token() -> None:
    torch.manual_seed(0)
    router = claim.TwoLayerGate(16, 4, k=2, renorm=True, balance=0.0)
    choice: Any = router.decide(view()).decision.choice
    cut = replace(view(), x_BTD=view().x_BTD[:, :3], mask_BT=view().mask_BT[:, :3])
    alone: Any = router.decide(cut).decision.choice
    assert torch.equal(choice.idx_NK.reshape(4, 6, 2)[:, :3], alone.idx_NK.reshape(4, 3, 2))


@dataclass(frozen=True, kw_only=True)
class TinyBed(claim.GateBed):
    width: int = 16
    length: int = 16
    num_layers: int = 2
    n_experts: int = 4


@pytest.mark.slow
def test_it_runs_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "SEEDS", (0, 1))
    monkeypatch.setattr(claim, "STEPS", {False: 3})
    monkeypatch.setattr(claim, "run_arms", partial(run_arms, jobs=1))
    monkeypatch.setattr(claim, "GateBed", TinyBed)
    verdict = claim.verify(full=False)
    assert verdict.measured["exact_properties"] is True
    arms = verdict.measured["arms"]
    assert all(0 <= v <= 1 for found in arms.values() for v in found["accuracy"])
    assert len(verdict.measured["differences"]) == 6
