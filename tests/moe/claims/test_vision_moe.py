from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from crossroads.moe.beds import get_bed
from crossroads.moe.claims import vision_moe as claim
from crossroads.moe.claims.arms import Arms, run_arms
from crossroads.moe.contract import Dense, ExpertChoice, RouterInput, RoutingDecision
from crossroads.moe.routers import build_router

START = {"softmax-tc": [5.0, 6.0, 7.0], "sinkhorn-tc": [2.0, 2.0, 3.0]}


def made(accuracy: dict[str, tuple[float, ...]], *, exact: float = 1.0, used: float = 0.9) -> Arms:
    figures: dict[str, Any] = {}
    for name in (*claim.SPARSE, "soft"):
        slots = used if name in claim.TOKEN_CHOICE else 1.0
        figures[name] = {"slots_used": (slots,) * 3, "exact": (exact,) * 3}
    for name in (claim.DROPLESS, "dense"):
        figures[name] = {}
    for name, found in figures.items():
        kind = name if name in accuracy else name.rpartition("-")[2]
        found["accuracy"] = accuracy.get(kind, (0.90, 0.91, 0.92))
    return Arms(seeds=claim.SEEDS, figures=figures)


EQUAL = (0.90, 0.91, 0.92)
BETTER = (0.93, 0.94, 0.951)
BEST = (0.97, 0.98, 0.991)
WAVERING = (0.89, 0.93, 0.915)


def test_it_holds_when_soft_beats_the_best_sparse_and_expert_choice_token_choice() -> None:
    arms = made({"tc": EQUAL, "ec": BETTER, "soft": BEST})
    assert claim.judge(arms, START) == "holds"
    assert claim.best_sparse(arms) in claim.EXPERT_CHOICE


def test_one_clear_difference_and_one_unclear_is_a_direction() -> None:
    assert claim.judge(made({"ec": BETTER, "soft": BETTER}), START) == "holds in direction"
    assert claim.judge(made({"ec": WAVERING, "soft": BEST}), START) == "holds in direction"


def test_no_clear_difference_is_null() -> None:
    assert claim.judge(made({"ec": WAVERING, "soft": WAVERING}), START) == "null"
    assert claim.judge(made({}), START) == "null"


def test_the_opposite_or_a_broken_property_fails() -> None:
    assert claim.judge(made({"tc": BETTER, "soft": BEST}), START) == "fails"
    assert claim.judge(made({"tc": BETTER, "ec": BEST, "soft": EQUAL}), START) == "fails"
    broken = made({"ec": BETTER, "soft": BEST}, exact=0.0)
    assert claim.judge(broken, START) == "fails"


def test_without_the_mechanism_the_order_of_accuracies_is_not_enough() -> None:
    order = {"ec": BETTER, "soft": BEST}
    assert claim.judge(made(order, used=1.0), START) == "null"
    piled = {**START, "sinkhorn-tc": [2.0, 9.0, 3.0]}
    assert claim.judge(made(order), piled) == "null"


def decided(router: str) -> RoutingDecision:
    torch.manual_seed(0)
    inp = RouterInput(x_BTD=torch.randn(3, 16, 8), mask_BT=torch.ones(3, 16, dtype=torch.bool))
    return build_router(router, 8, 4).decide(inp).decision


@pytest.mark.parametrize("router", [*claim.SPARSE, "soft"])
def test_the_routers_have_the_properties_that_are_checked(router: str) -> None:
    assert claim.exact(router, decided(router))


def test_a_slot_left_empty_or_filled_twice_is_seen() -> None:
    decision = decided("softmax-ec")
    assert isinstance(decision.choice, ExpertChoice)
    for wrong in (-1, int(decision.choice.tok_GEC[0, 0, 1])):
        tok_GEC = decision.choice.tok_GEC.clone()
        tok_GEC[0, 0, 0] = wrong
        choice = replace(decision.choice, tok_GEC=tok_GEC)
        assert not claim.exact("softmax-ec", replace(decision, choice=choice))


def test_mixtures_that_do_not_sum_to_one_are_seen() -> None:
    decision = decided("soft")
    assert isinstance(decision.choice, Dense)
    choice = replace(decision.choice, combine_GSEC=decision.choice.combine_GSEC * 1.01)
    assert not claim.exact("soft", replace(decision, choice=choice))


def test_the_plan_spreads_the_load_of_an_untrained_network() -> None:
    bed = get_bed("vision")
    piled = claim.initial_load(bed, "softmax-tc", [0])
    spread = claim.initial_load(bed, "sinkhorn-tc", [0])
    assert 1 <= spread[0] < piled[0] <= 8


@pytest.mark.slow
def test_it_runs_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "SEEDS", (0, 1))
    monkeypatch.setattr(claim, "STEPS", {False: 2})
    monkeypatch.setattr(claim, "run_arms", partial(run_arms, jobs=1))
    small = {
        name: replace(arm, changes={**arm.changes, "hidden": 8}) for name, arm in claim.ARMS.items()
    }
    monkeypatch.setattr(claim, "ARMS", small)
    verdict = claim.verify(full=False)
    assert verdict.name == "vision-moe" and verdict.seeds == (0, 1)
    assert verdict.measured["exact_properties"] is True
    for name in claim.FILLED:
        assert verdict.measured["arms"][name]["slots_used"] == [1.0, 1.0]
        assert verdict.measured["arms"][name]["load_cv"] == [0.0, 0.0]
    assert len(verdict.measured["arms"]["dense"]["accuracy"]) == 2
