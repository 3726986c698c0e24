from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import UnavailableError
from crossroads.datasets import clinc150
from crossroads.moe.beds.vision import VisionBed
from crossroads.moe.claims import da_moe, intents
from crossroads.moe.claims.da_moe import (
    count_of,
    dealt_at_random,
    fixed_arm,
    is_exact,
    judge,
    order_within,
    watched,
)
from crossroads.moe.claims.intents import IntentBed
from tests.moe.claims.small import made_up, shorten

GOOD: dict[str, dict[str, Any]] = {
    "da-moe": {"accuracy": 0.92, "at_random": 0.05, "exact": 1.0},
    "min-max": {"accuracy": 0.9, "at_random": 0.05, "exact": 1.0},
    "switch": {"accuracy": 0.9},
    "top-k": {"accuracy": 0.92},
}


def judged(**changes: Any) -> str:
    return judge(made_up({**GOOD, "da-moe": {**GOOD["da-moe"], **changes}}))


def test_every_rule_met_holds() -> None:
    assert judged() == "holds"


@pytest.mark.parametrize("change", [{"accuracy": 0.905}, {"at_random": (0.1, -0.01, 0.1)}])
def test_a_smaller_gain_or_mixed_mechanism_leaves_the_direction(change: dict[str, Any]) -> None:
    assert judged(**change) == "holds in direction"


@pytest.mark.parametrize("change", [{"accuracy": (0.95, 0.85, 0.85)}, {"at_random": -0.01}])
def test_no_gain_or_no_use_of_the_numbers_is_null(change: dict[str, Any]) -> None:
    assert judged(**change) == "null"


@pytest.mark.parametrize("change", [{"exact": (1.0, 1.0, 0.0)}, {"accuracy": (0.8, 0.81, 0.79)}])
def test_a_broken_property_or_clearly_worse_fails(change: dict[str, Any]) -> None:
    assert judged(**change) == "fails"


def test_the_fixed_arm_has_the_rounded_mean_and_the_same_experts() -> None:
    arm = fixed_arm(VisionBed(), 2.6)
    assert arm.router.startswith("top2:k=3:")
    assert arm.changes == {"n_experts": 4, "hidden": 64}


def vision_model(router: str = "da-moe") -> torch.nn.Module:
    torch.manual_seed(0)
    bed = VisionBed()
    return bed.build(replace(bed.spec(router), n_experts=4)).eval()


def test_numbers_follow_importance_and_an_extra_expert_is_noticed() -> None:
    model = vision_model("da-moe:normalise=minmax")
    with torch.no_grad(), watched(model) as calls:
        VisionBed().probe(model)
    assert len(calls) == 2
    router, inp, answer = calls[0]
    assert is_exact(router, inp, answer)
    choice: Any = answer.decision.choice
    least = int(count_of(answer).flatten().argmin())
    wrong_NK = choice.idx_NK.clone()
    wrong_NK[least] = torch.arange(4)
    wrong = replace(answer.decision, choice=replace(choice, idx_NK=wrong_NK))
    assert not is_exact(router, inp, replace(answer, decision=wrong))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(0, 1000))
def test_dealing_at_random_moves_real_tokens_among_themselves(
    lengths: list[int], seed: int
) -> None:
    mask_BT = torch.arange(7) < torch.tensor(lengths).unsqueeze(1)
    order_BT = order_within(mask_BT, torch.Generator().manual_seed(seed))
    for row, length in zip(order_BT.tolist(), lengths, strict=True):
        assert sorted(row[:length]) == list(range(length))
        assert row[length:] == list(range(length, 7))


def test_dealing_at_random_keeps_the_numbers_of_every_image_and_ends_after() -> None:
    model = vision_model("da-moe:normalise=minmax")
    with torch.no_grad(), watched(model) as calls:
        VisionBed().probe(model)
        with dealt_at_random(model, 0):
            VisionBed().probe(model)
        VisionBed().probe(model)
    plain, dealt, after = (count_of(calls[i][2]) for i in (0, 2, 4))  # the first routed layer's
    assert torch.equal(plain, after)
    assert not torch.equal(plain, dealt)
    assert torch.equal(plain.sort(-1).values, dealt.sort(-1).values)


def test_without_the_requests_the_digits_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise UnavailableError("not here")

    monkeypatch.setattr(clinc150, "load", absent)
    assert da_moe.bed_here().name == "vision"


@pytest.mark.slow
def test_verify_reports_every_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, da_moe, VisionBed)
    monkeypatch.setattr(da_moe, "bed_here", VisionBed)
    found = da_moe.verify(full=False)
    assert found.measured["exact"]
    assert set(found.measured["arms"]) == {"da-moe", "switch", "min-max", "top-k"}


@pytest.mark.slow
def test_verify_runs_on_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    if not isinstance(da_moe.bed_here(), IntentBed):
        pytest.skip("CLINC150 is absent on this machine")
    monkeypatch.setattr(intents, "JUDGED", 100)
    shorten(monkeypatch, da_moe, IntentBed)
    found = da_moe.verify(full=False)
    assert found.measured["exact"]
    assert "CLINC150" in found.data
