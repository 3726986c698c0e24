from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from crossroads.core.routed import routed_layers
from crossroads.moe.beds import get_bed
from crossroads.moe.claims import hyperrouter as claim
from crossroads.moe.claims.arms import Arm, Arms, run_arms
from crossroads.moe.routers import build_router

BASE = (3.00, 3.10, 3.05)
LOWER = (2.90, 3.01, 2.95)
HIGHER = (3.10, 3.19, 3.16)
WAVERING = (2.80, 3.20, 3.04)


def made(
    hyper: tuple[float, ...] = BASE,
    *,
    dropout: tuple[float, ...] = BASE,
    trained: tuple[float, ...] = BASE,
    cosine: float = 0.1,
    exact: float = 1.0,
) -> Arms:
    def figures(bpb: tuple[float, ...], alike: float) -> dict[str, Any]:
        found = {claim.at(k): bpb for k in claim.JUDGED_K}
        return {**found, claim.SIMILARITY: (alike,) * 3, "exact": (exact,) * 3}

    return Arms(
        seeds=claim.SEEDS,
        figures={
            claim.HYPER: figures(hyper, cosine),
            claim.DROPOUT: figures(dropout, 0.3),
            claim.TRAINED: figures(trained, 0.2),
        },
    )


def test_it_holds_below_both_gates_with_experts_less_alike() -> None:
    assert claim.judge(made(LOWER)) == "holds"
    assert claim.judge(made(LOWER, cosine=0.25)) == "holds in direction"


def test_below_both_in_the_mean_and_clearly_below_one_is_a_direction() -> None:
    assert claim.judge(made(LOWER, dropout=WAVERING)) == "holds in direction"


def test_no_clear_difference_is_null() -> None:
    assert claim.judge(made()) == "null"
    assert claim.judge(made(WAVERING)) == "null"
    slightly = tuple(value + 0.01 for value in BASE)  # clear, but within half a per cent
    assert claim.judge(made(slightly)) == "null"


def test_clearly_above_either_gate_or_a_broken_property_fails() -> None:
    assert claim.judge(made(dropout=LOWER)) == "fails"
    assert claim.judge(made(LOWER, trained=tuple(v - 0.1 for v in LOWER))) == "fails"
    assert claim.judge(made(LOWER, exact=0.0)) == "fails"
    assert claim.judge(made(HIGHER)) == "fails"


def hypers(seed: int) -> list[Any]:
    torch.manual_seed(seed)
    return [build_router("hyper:k_min=8", 12, 16) for _ in range(2)]


def test_only_the_embedding_may_move() -> None:
    before, after = hypers(0), hypers(0)
    assert claim.moved(after, before) == {"gate_moved": 0.0, "exact": 0.0}
    for router in after:
        with torch.no_grad():
            router.embedding.add_(0.5)
    found = claim.moved(after, before)
    assert found["exact"] == 1.0 and found["gate_moved"] > 0
    after[1].second_bias[3] += 1e-6
    assert claim.moved(after, before)["exact"] == 0.0


def test_judging_with_other_numbers_of_experts_leaves_the_model_as_it_was() -> None:
    bed = get_bed("lm", width=16, length=8, num_layers=2, n_experts=4)
    for name, usual in (("hyper:k_eval=3", 3), ("random:k=1:k_end=4:k_eval=2", 2), ("top2", 2)):
        torch.manual_seed(0)
        model = bed.build(bed.spec(name)).eval()
        with torch.no_grad():
            found = claim.by_k(model, bed, bed.config("quick"))
            output, _ = bed.probe(model)
        assert len(set(found.values())) >= 3  # 4, 8 and 16 are all four experts
        assert found[claim.at(8)] == found[claim.at(16)]
        assert output.records[0].decisions[0].choice.idx_NK.shape[1] == usual


def test_a_run_starts_with_the_routers_it_is_compared_with() -> None:
    bed = get_bed("lm", width=16, length=8, num_layers=2)
    config = bed.config("quick")
    first, again = claim.untrained(bed, config), claim.untrained(bed, config)
    torch.manual_seed(config.seed)
    model = bed.build(claim.ARMS[claim.HYPER].spec(bed))
    for router, one, other in zip(
        [layer.routers[0] for layer in routed_layers(model)], first, again, strict=True
    ):
        assert torch.equal(router.embedding, one.embedding)
        assert torch.equal(one.second_weight, other.second_weight)


@pytest.mark.slow
def test_it_runs_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "SEEDS", (0, 1))
    monkeypatch.setattr(claim, "STEPS", {False: 3})
    monkeypatch.setattr(claim, "run_arms", partial(run_arms, jobs=1))
    monkeypatch.setattr(claim, "get_bed", partial(get_bed, width=16, length=16, num_layers=2))
    small = {
        name: Arm(router=arm.router, changes={**arm.changes, "hidden": 4})
        for name, arm in claim.ARMS.items()
    }
    monkeypatch.setattr(claim, "ARMS", small)
    verdict = claim.verify(full=False)
    assert verdict.measured["exact_properties"] is True
    arms = verdict.measured["arms"]
    assert all(len(found[claim.at(2)]) == 2 for found in arms.values())
    assert min(arms[claim.HYPER]["gate_moved"]) > 0
