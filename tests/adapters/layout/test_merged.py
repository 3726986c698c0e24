"""A merge of experts is one adapter that computes their weighted sum, here and in PEFT."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.adapters.bank import AdapterBank, Expert, LoRA
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import Call, RouteInput, Router, Routing
from crossroads.adapters.experts import Alone
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.layout import (
    export_expert,
    merged_by_router,
    merged_expert,
    read_adapter,
)
from crossroads.adapters.routers import build_router
from crossroads.adapters.routers.task_moe import TaskMoE
from crossroads.core.errors import InputError, UsageError
from tests.adapters import toys
from tests.adapters.by_hand import merged_delta_OI
from tests.adapters.layout.tiny import base, load_with_peft, logits, save_with_peft

ADAPTERS: dict[str, dict[str, Any]] = {
    "root": {"use_rslora": True, "target_modules": ["q_proj", "v_proj"], "r": 3},
    "plain": {"seed": 11, "r": 4},
    "mixed": {"seed": 12, "r": 2, "rank_pattern": {"q_proj": 5}, "lora_alpha": 6},
}
WEIGHTS = {"root": 0.5, "plain": -0.75, "mixed": 1.25}


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> AdapterBank:
    experts = []
    for name, made in ADAPTERS.items():
        folder = tmp_path_factory.mktemp("adapters") / name
        save_with_peft(folder, **made)
        experts.append(read_adapter(folder)[0])
    return AdapterBank(experts)


def with_sum(bank: AdapterBank, weights: dict[str, float]) -> torch.Tensor:
    model = base()
    for layer in bank.layers:
        for name, weight in weights.items():
            lora = bank.layers[layer].lora(bank.position(name))
            if lora is not None:
                model.get_submodule(layer).weight.data += weight * lora.delta_OI()
    return logits(model)


@pytest.mark.parametrize("form", ["tight", "padded"])
def test_a_merged_export_computes_the_weighted_sum_in_peft(
    tmp_path: Path, bank: AdapterBank, form: Any
) -> None:
    export_expert(merged_expert(bank, WEIGHTS, form=form), tmp_path / "out")
    expected = with_sum(bank, WEIGHTS)
    assert (expected - logits(base())).abs().max() > 1e-2
    torch.testing.assert_close(load_with_peft(tmp_path / "out"), expected, atol=1e-4, rtol=1e-4)
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text("utf-8"))
    assert written["use_rslora"] is False
    assert isinstance(written["lora_alpha"], int)
    assert written["target_modules"] == sorted(bank.layers)
    assert bool(written["rank_pattern"]) == (form == "tight")


def test_one_expert_alone_and_weights_of_zero(bank: AdapterBank) -> None:
    alone = merged_expert(bank, {"root": 2.0, "plain": 0.0})
    assert set(alone.modules) == set(bank.expert("root").modules)  # down_proj is not among them
    for layer, lora in bank.expert("root").modules.items():
        torch.testing.assert_close(alone.modules[layer].delta_OI(), 2 * lora.delta_OI())


def test_a_merge_of_nothing_or_of_strangers_is_refused(bank: AdapterBank) -> None:
    with pytest.raises(InputError, match="no expert has a weight"):
        merged_expert(bank, {"root": 0.0})
    with pytest.raises(UsageError, match="did you mean 'plain'"):
        merged_expert(bank, {"plane": 1.0})


@settings(max_examples=30)
@given(
    ranks=st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any),
    seed=st.integers(0, 1000),
    form=st.sampled_from(["tight", "padded"]),
)
def test_the_merge_is_the_weighted_delta(ranks: list[int], seed: int, form: Any) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    # A rank of 0 stands for an expert that leaves "m" alone; all adapt "other".
    experts = [
        Expert(
            name=str(e),
            modules={
                layer: LoRA(a_RI=draw(r, 5), b_OR=draw(3, r), scale=float(draw(1)))
                for layer, r in (("m", rank), ("other", 1))
                if r
            },
        )
        for e, rank in enumerate(ranks)
    ]
    bank = AdapterBank(experts)
    weights_E = draw(len(ranks))
    merged = merged_expert(bank, {str(e): float(w) for e, w in enumerate(weights_E)}, form=form)
    for layer, module in bank.layers.items():
        expected = merged_delta_OI(module, weights_E)
        torch.testing.assert_close(merged.modules[layer].delta_OI(), expected, atol=1e-4, rtol=1e-4)
    assert form == "tight" or len({lora.rank for lora in merged.modules.values()}) == 1


def test_a_static_routers_merge_is_what_the_routed_model_computes(
    tmp_path: Path, bank: AdapterBank
) -> None:
    routed = RoutedModel(base(), bank, build_router("uniform"))
    export_expert(merged_by_router(bank, build_router("uniform")), tmp_path / "out")
    expected = logits(routed.model)
    torch.testing.assert_close(load_with_peft(tmp_path / "out"), expected, atol=1e-4, rtol=1e-4)


def test_a_merge_tells_every_layer(bank: AdapterBank) -> None:
    told: list[tuple[int, int]] = []
    merged_by_router(bank, build_router("uniform"), progress=lambda *at: told.append(at))
    assert told == [(done, len(bank.layers)) for done in range(1, len(bank.layers) + 1)]


def test_a_router_that_reads_the_call_is_merged_for_one_sequence(bank: AdapterBank) -> None:
    merged = merged_by_router(bank, build_router("named"), call=Call(experts=("mixed",)))
    with calling(experts=["mixed"]):
        routed = RoutedModel(base(), AdapterBank([merged, *bank.experts()]), build_router("named"))
        expected = logits(routed.model)
    with calling(experts=["merged"]):
        torch.testing.assert_close(logits(routed.model), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="about one sequence"):
        merged_by_router(bank, build_router("named"), call=Call(experts=("mixed", "plain")))


class _Averaged(Router):
    name = "averaged"

    def route(self, given: RouteInput) -> Routing:
        weights = torch.full((1, 1, 1, given.bank.n_experts), 0.5)
        return Routing(weights=weights, mode="merge_factors", normalised=False)

    def is_static(self, call: Call) -> bool:
        return True


def test_an_average_of_factors_is_exported_as_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    loras = [
        LoRA(
            a_RI=torch.randn(2, 16, generator=generator),
            b_OR=torch.randn(64, 2, generator=generator),
            scale=0.5,
        )
        for _ in range(2)
    ]
    bank = AdapterBank([Expert(name=str(e), modules={"lm_head": x}) for e, x in enumerate(loras)])
    merged = merged_by_router(bank, _Averaged())
    expected = 0.5 * (loras[0].b_OR + loras[1].b_OR) / 2 @ (loras[0].a_RI + loras[1].a_RI) / 2
    torch.testing.assert_close(merged.modules["lm_head"].delta_OI(), expected)


def test_a_router_by_token_cannot_be_exported(bank: AdapterBank) -> None:
    class ByToken(Router):
        name = "by-token"

    with pytest.raises(InputError, match="by-token: its weights vary by token"):
        merged_by_router(bank, ByToken())


class Alike(Router):
    """Half the weight for each of two experts, whether or not they adapt a layer."""

    def route(self, given: RouteInput) -> Routing:
        return Routing(weights=torch.tensor([0.5, 0.5])[None, None, None], mode="merge_delta")

    def is_static(self, call: Call) -> bool:
        return True


def test_an_export_renormalises_where_experts_are_missing_as_the_model_does(
    bank: AdapterBank,
) -> None:
    two = bank.subset(["root", "mixed"])  # the first adapts two kinds of layers alone
    routed = RoutedModel(base(), two, Alike())
    expected = logits(routed.model)
    merged = AdapterBank([merged_by_router(two, Alike())])
    found = logits(RoutedModel(base(), merged, build_router("uniform")).model)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("spec", "asked"), [("poly", "task_ids"), ("named", "experts"), ("oracle", "labels")]
)
def test_what_a_router_must_be_told_is_asked_for(bank: AdapterBank, spec: str, asked: str) -> None:
    with pytest.raises(InputError, match=f"router {spec}: needs '{asked}'"):
        merged_by_router(bank, build_router(spec))


@pytest.mark.parametrize("select", ["straight-through", "softmax", "average", "random"])
def test_a_route_by_block_is_exported_as_the_model_runs_it(select: str) -> None:
    """Also where the expert of a block leaves some of its layers alone."""
    model = toys.tiny_llama()
    first, second = toys.strangers(model, 2)
    partial = {layer: lora for layer, lora in second.modules.items() if "down_proj" in layer}
    bank = AdapterBank([first, replace(second, modules=partial)])
    for task in range(6):
        router, call = TaskMoE(tasks=6, select=select), {"task_ids": torch.tensor([task])}
        alone = merged_by_router(bank, router, call=Call(task_ids_B=call["task_ids"]))
        routed = RoutedModel(model, bank, router)
        with torch.no_grad(), calling(**call):
            wanted = model(toys.ids(1, 5)).logits
        routed.unwrap()
        exported = RoutedModel(model, AdapterBank([alone]), Alone())
        with torch.no_grad():
            found = model(toys.ids(1, 5)).logits
        exported.unwrap()
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
