"""Merges of all experts into one adapter: against PEFT's, and against what they promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank, Expert, LoRA, ModuleBank
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.merging import merge
from crossroads.adapters.routers import build_router
from crossroads.adapters.routers.dare import Dare
from crossroads.adapters.routers.ties import Ties
from crossroads.core.errors import InputError, UsageError
from tests.adapters.routers.test_arrow import as_peft, base
from tests.adapters.strangers import stranger, strangers, tiny_llama, tokens

MERGES = ("ties", "ties:on=delta", "dare", "dare:elect=true", "dare:on=delta")


def logits(spec: str, experts: list[Expert]) -> Tensor:
    model = tiny_llama()
    RoutedModel(model, AdapterBank(experts), build_router(spec))
    found: Tensor = model(tokens()).logits
    return found


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's use of transformers
@pytest.mark.parametrize(
    ("spec", "theirs"),
    [
        ("ties:density=0.5", {"combination_type": "ties", "density": 0.5}),
        (
            "ties:density=0.3:weight=0.5:elect=frequency",
            {"combination_type": "ties", "density": 0.3, "majority_sign_method": "frequency"},
        ),
        ("ties:density=0.5:on=delta", {"combination_type": "ties_svd", "density": 0.5}),
    ],
)
def test_logits_equal_peft_s(spec: str, theirs: dict[str, Any], tmp_path: Any) -> None:
    peft = pytest.importorskip("peft")
    experts = strangers(tiny_llama(), 3)
    paths = [as_peft(peft, expert, tmp_path) for expert in experts]
    model = peft.PeftModel.from_pretrained(tiny_llama(), paths[0], adapter_name="e0")
    model.load_adapter(paths[1], "e1")
    model.load_adapter(paths[2], "e2")
    weight = 0.5 if "weight" in spec else 1.0
    model.add_weighted_adapter(["e0", "e1", "e2"], [weight] * 3, "merged", **theirs)
    model.set_adapter("merged")
    ours = logits(spec, experts)
    torch.testing.assert_close(model(tokens()).logits, ours, atol=1e-4, rtol=0)
    assert (ours - base(tokens())).abs().max() > 0.01


def test_a_merge_of_one_expert_with_everything_kept_is_that_expert() -> None:
    one = LoRA(a_RI=torch.randn(2, 6), b_OR=torch.randn(5, 2), scale=3.0)
    bank = ModuleBank("layer", [None, one])
    for on in ("factors", "delta"):
        found = merge(bank, lambda tensors, weights_E: tensors[0] * weights_E[0], weight=1.0, on=on)
        torch.testing.assert_close(found.delta_OI(), one.delta_OI())


def test_electing_keeps_what_agrees_in_sign() -> None:
    def lora(*values: float) -> LoRA:
        return LoRA(a_RI=torch.tensor([values]), b_OR=torch.ones(1, 1), scale=1.0)

    bank = ModuleBank("layer", [lora(3.0, 1.0, 0.1), lora(-1.0, 2.0, 0.2)])
    found = Ties(density=0.67, on="delta").merged(bank).delta_OI()
    # Places 1 and 2 are kept of each; at place 1 the sign of 3 wins over that of -1.
    torch.testing.assert_close(found, torch.tensor([[3.0, 1.5, 0.0]]))


def test_draws_depend_on_the_seed_and_the_layer_alone() -> None:
    experts = strangers(tiny_llama(), 3)
    torch.manual_seed(1)
    first = logits("dare", experts)
    torch.manual_seed(2)
    assert torch.equal(logits("dare", experts), first)
    assert not torch.equal(logits("dare:seed=1", experts), first)
    state = torch.get_rng_state()
    Dare().merged(next(iter(AdapterBank(experts).layers.values())))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_dropped_is_made_up_for_in_the_mean() -> None:
    lora = LoRA(a_RI=torch.ones(1, 4000), b_OR=torch.ones(1, 1), scale=1.0)
    found = Dare(density=0.25, weight=1.0).merged(ModuleBank("layer", [lora])).a_RI
    assert set(found.unique().tolist()) == {0.0, 4.0}
    assert float(found.mean()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("spec", MERGES)
def test_merges_are_the_same_for_all_tokens_and_follow_the_bank(spec: str) -> None:
    model = tiny_llama()
    bank = AdapterBank(strangers(model, 3))
    RoutedModel(model, bank, build_router(spec))
    before = model(tokens()).logits
    last = bank.remove("e2")
    assert not torch.equal(model(tokens()).logits, before)
    bank.add(last)
    assert torch.equal(model(tokens()).logits, before)


def test_unequal_ranks_are_merged_as_deltas_only() -> None:
    model = tiny_llama()
    experts = [stranger(model, "a", seed=0, rank=1), stranger(model, "b", seed=1, rank=3)]
    with pytest.raises(InputError, match="use on=delta"):
        logits("ties", experts)
    assert torch.isfinite(logits("ties:on=delta", experts)).all()


@pytest.mark.parametrize("spec", ["ties:density=0", "dare:density=1.5", "ties:on=sum"])
def test_settings_that_mean_nothing_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match="expected"):
        build_router(spec)
    with pytest.raises(UsageError):
        build_router("ties:densty=1")


def test_task_arithmetic_is_the_weighted_sum_of_what_experts_do() -> None:
    model = tiny_llama()
    experts = strangers(model, 3)
    layer = next(iter(experts[0].modules))
    experts[1] = replace(
        experts[1], modules={k: v for k, v in experts[1].modules.items() if k != layer}
    )
    bank = AdapterBank(experts)
    router = build_router("task-arithmetic:weight=0.7")
    routed = RoutedModel(model, bank, router, kernel="dense")
    routed.checks = True
    found = model(tokens()).logits
    weights = routed.last_routings[layer].weights.flatten()
    torch.testing.assert_close(weights, torch.tensor([0.7, 0.0, 0.7]))
    merged = tiny_llama()
    with torch.no_grad():
        for expert in experts:
            for name, lora in expert.modules.items():
                merged.get_submodule(name).weight += 0.7 * lora.delta_OI()
    torch.testing.assert_close(found, merged(tokens()).logits, atol=1e-4, rtol=0)
