"""Experts merged once: the same function, kept while nothing changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from crossroads.adapters import static
from crossroads.adapters.bank import AdapterBank, LoRA, ModuleBank
from crossroads.adapters.calls import calling
from crossroads.adapters.combine import combine
from crossroads.adapters.contract import Call, Mode, RouteInput, Router, Routing
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from crossroads.adapters.static import Static
from tests.adapters.toys import bank_for, ids, lora, module_bank, rng, tiny_gpt2, tiny_llama


@dataclass
class Counted:
    """Counts how often experts are merged."""

    merges: int = 0
    original: Any = field(default=static._merged)

    def __call__(self, *arguments: Any) -> Any:
        self.merges += 1
        return self.original(*arguments)


@pytest.fixture
def counted() -> Any:
    with patch.object(static, "_merged", Counted()) as counter:
        yield counter


def layer(bank: ModuleBank, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(bank.inputs, bank.outputs).to(dtype).requires_grad_(False)


def of_sequences(weights: Tensor, mode: Mode) -> Routing:
    return Routing(weights=weights[:, None, None], mode=mode, normalised=False)


X = torch.randn(2, 5, 6, generator=rng(0))
SAME = torch.tensor([[0.3, -0.7, 1.0]])


@pytest.mark.parametrize("mode", ["mix", "merge_delta", "merge_factors"])
@pytest.mark.parametrize("rows", [1, 2])
def test_merging_computes_what_combining_does(mode: Mode, rows: int) -> None:
    bank = module_bank([2, 2, 2], dtype=torch.float32)
    base, routing = layer(bank), of_sequences(SAME.expand(rows, 3), mode)
    y = Static().forward(X, base, bank, routing)
    assert y is not None
    torch.testing.assert_close(y, base(X) + combine(X, bank, routing), atol=1e-4, rtol=1e-4)


def test_averages_of_factors_may_differ_between_sequences() -> None:
    bank = module_bank([2, 2, 2], dtype=torch.float32)
    base, routing = layer(bank), of_sequences(torch.rand(2, 3), "merge_factors")
    y = Static().forward(X, base, bank, routing)
    assert y is not None
    torch.testing.assert_close(y, base(X) + combine(X, bank, routing), atol=1e-4, rtol=1e-4)


def test_a_mix_that_differs_between_sequences_is_not_merged() -> None:
    bank = module_bank([2, 2, 2], dtype=torch.float32)
    assert Static().forward(X, layer(bank), bank, of_sequences(torch.rand(2, 3), "mix")) is None


def test_the_merged_weight_is_kept_while_nothing_changes(counted: Counted) -> None:
    bank = module_bank([2, 2, 2], dtype=torch.float32)
    base, kernel = layer(bank), Static()

    def run(weights: Tensor = SAME) -> int:
        kernel.forward(X, base, bank, of_sequences(weights, "mix"))
        return counted.merges

    assert run() == 1
    assert run() == 1
    assert run(SAME.clone()) == 1  # equal, not identical
    assert run(2 * SAME) == 2
    with torch.no_grad():
        bank.a_ERI.mul_(2.0)
    assert run(2 * SAME) == 3
    with torch.no_grad():
        base.weight.mul_(2.0)
    assert run(2 * SAME) == 4


def test_changed_factors_change_the_output() -> None:
    bank = module_bank([2, 2, 2], dtype=torch.float32)
    base, kernel, routing = layer(bank), Static(), of_sequences(SAME, "mix")
    before = kernel.forward(X, base, bank, routing)
    with torch.no_grad():
        bank.b_EOR[0] += 1.0
    after = kernel.forward(X, base, bank, routing)
    assert before is not None
    assert after is not None
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, base(X) + combine(X, bank, routing), atol=1e-4, rtol=1e-4)


def test_what_is_trained_is_not_merged() -> None:
    bank = module_bank([2, 2, 2], dtype=torch.float32)
    base = layer(bank)
    weights = SAME.clone().requires_grad_(True)
    assert Static().forward(X, base, bank, of_sequences(weights, "mix")) is None
    with torch.no_grad():
        assert Static().forward(X, base, bank, of_sequences(weights, "mix")) is not None
    bank.a_ERI.requires_grad_(True)
    assert Static().forward(X, base, bank, of_sequences(SAME, "mix")) is None


def test_the_input_has_its_gradient_after_inference_mode() -> None:
    bank = module_bank([2, 2, 2], dtype=torch.float32)
    base, kernel, routing = layer(bank), Static(), of_sequences(SAME, "mix")
    with torch.inference_mode():
        kernel.forward(X, base, bank, routing)
    x = X.clone().requires_grad_(True)
    y = kernel.forward(x, base, bank, routing)
    assert y is not None
    y.square().sum().backward()
    other = X.clone().requires_grad_(True)
    (base(other) + combine(other, bank, routing)).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad, atol=1e-3, rtol=1e-4)


def test_half_precision_keeps_changes_below_the_weights_rounding() -> None:
    bank = module_bank([2], scales=[1e-3], dtype=torch.float32)
    base = layer(bank, torch.bfloat16)
    x = X.bfloat16()
    y = Static().forward(x, base, bank, of_sequences(torch.ones(1, 1), "mix"))
    assert y is not None
    expected = base(x) + combine(x, bank, of_sequences(torch.ones(1, 1), "mix")).bfloat16()
    assert torch.equal(y, expected)


class Fixed(Router):
    """Has one adapter of its own making for a layer."""

    name: ClassVar[str] = "fixed"

    def __init__(self, one: LoRA) -> None:
        super().__init__()
        self.one = one

    def merged(self, bank: ModuleBank) -> LoRA | None:
        return self.one

    def route(self, given: RouteInput) -> Routing:
        raise AssertionError("asked for a routing")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_of_the_routers_own_replaces_routing(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(6, 4)).to(dtype)
    bank = AdapterBank([_expert("0", lora(2, 6, 4))])
    one = lora(3, 6, 4, scale=0.5, seed=7)
    base, x = model[0], X.to(dtype)
    expected = base(x).float() + x.float() @ one.delta_OI().T
    routed = RoutedModel(model, bank, Fixed(one))
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(model(x).float(), expected, atol=tolerance, rtol=tolerance)
    assert routed.unwrap()[0] is base


def _expert(layer_name: str, one: LoRA) -> Any:
    from crossroads.adapters.bank import Expert

    return Expert(name="a", modules={layer_name: one})


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_a_uniform_merge_in_a_model_is_merged_and_follows_the_bank(
    make: Any, counted: Counted
) -> None:
    model = make()
    bank = bank_for(model, 3, ends=("q_proj", "down_proj", "c_attn", "c_fc"))
    layers = len(bank.layers)
    routed = RoutedModel(model, bank, build_router("uniform"))
    x = ids(2, 7)
    with torch.no_grad():
        first, again = model(x).logits, model(x).logits
        assert torch.equal(first, again)
        assert counted.merges == layers
        routed.kernel = "dense"
        torch.testing.assert_close(model(x).logits, first, atol=1e-4, rtol=1e-4)
        routed.kernel = "auto"
        bank.remove("e1")
        without = model(x).logits
    assert counted.merges == 2 * layers
    assert not torch.allclose(without, first, atol=1e-3)
    routed.unwrap()


def test_hard_choices_are_merged_for_one_expert_and_mixed_for_several(counted: Counted) -> None:
    model = tiny_llama()
    bank = bank_for(model, 3)
    RoutedModel(model, bank, build_router("named"))
    x = ids(2, 7)
    with torch.no_grad():
        with calling(experts=["e1", "e1"]):
            alike = model(x).logits
        assert counted.merges == len(bank.layers)
        with calling(experts=["e1", "e2"]):
            apart = model(x).logits
    assert counted.merges == len(bank.layers)
    torch.testing.assert_close(apart[0], alike[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(apart[1], alike[1], atol=1e-2)


def test_the_call_decides_whether_a_router_is_static(counted: Counted) -> None:
    class Sometimes(Router):
        name: ClassVar[str] = "sometimes"

        def route(self, given: RouteInput) -> Routing:
            return Routing(weights=torch.tensor([0.5, 0.5])[None, None, None])

        def is_static(self, call: Call) -> bool:
            return call.step == 0

    model = tiny_llama()
    bank = bank_for(model, 2)
    RoutedModel(model, bank, Sometimes())
    with torch.no_grad():
        with calling(step=1):
            model(ids(1, 4))
        assert counted.merges == 0
        model(ids(1, 4))
    assert counted.merges == len(bank.layers)


class Doubled(nn.Module):
    """A layer with a product of its own."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, 6, generator=rng(3)), requires_grad=False)
        self.bias = None
        self.in_features, self.out_features = 6, outputs

    def forward(self, x: Tensor) -> Tensor:
        return 2 * (x @ self.weight.T)


@pytest.mark.parametrize("outputs", [4, 6])
def test_layers_of_other_kinds_keep_their_own_product(outputs: int) -> None:
    model = nn.Sequential(Doubled(outputs))
    one = lora(2, 6, outputs)
    expected = model(X) + X @ one.delta_OI().T
    RoutedModel(model, AdapterBank([_expert("0", one)]), build_router("uniform"))
    with torch.no_grad():
        torch.testing.assert_close(model(X), expected, atol=1e-4, rtol=1e-4)


def test_hooks_of_the_base_layer_run() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    RoutedModel(model, AdapterBank([_expert("0", lora(2, 6, 4))]), build_router("uniform"))
    seen: list[Tensor] = []
    with torch.no_grad():
        merged = model(X)
        base = model[0].base_layer
        base.register_forward_hook(lambda *hooked: seen.append(hooked[2]))
        torch.testing.assert_close(model(X), merged, atol=1e-4, rtol=1e-4)
        assert len(seen) == 1
        torch.testing.assert_close(seen[0], nn.functional.linear(X, base.weight, base.bias))


def test_what_is_kept_is_of_one_mode(counted: Counted) -> None:
    bank = module_bank([2, 2, 2], dtype=torch.float32)
    base, kernel = layer(bank), Static()
    for mode in ("mix", "merge_factors"):
        routing = of_sequences(SAME, mode)  # type: ignore[arg-type]
        y = kernel.forward(X, base, bank, routing)
        torch.testing.assert_close(y, base(X) + combine(X, bank, routing), atol=1e-4, rtol=1e-4)
    assert counted.merges == 2


def test_weights_that_a_router_writes_to_are_seen() -> None:
    bank = module_bank([2, 2, 2], dtype=torch.float32)
    base, kernel, weights = layer(bank), Static(), SAME.clone()
    kernel.forward(X, base, bank, of_sequences(weights, "mix"))
    weights += 1.0
    routing = of_sequences(weights, "mix")
    y = kernel.forward(X, base, bank, routing)
    torch.testing.assert_close(y, base(X) + combine(X, bank, routing), atol=1e-4, rtol=1e-4)


def test_one_merge_serves_batches_of_any_size(counted: Counted) -> None:
    bank = module_bank([2, 2, 2], dtype=torch.float32)
    base, kernel = layer(bank), Static()
    for rows in (1, 2, 1):
        index = torch.ones(rows, 1, 1, 1, dtype=torch.int64)
        routing = Routing(weights=torch.ones(rows, 1, 1, 1), index=index)
        y = kernel.forward(X[:rows], base, bank, routing)
        added = combine(X[:rows], bank, routing)
        torch.testing.assert_close(y, base(X[:rows]) + added, atol=1e-4, rtol=1e-4)
    other = Routing(weights=torch.ones(1, 1, 1, 1), index=0 * index)
    y = kernel.forward(X, base, bank, other)
    torch.testing.assert_close(y, base(X) + combine(X, bank, other), atol=1e-4, rtol=1e-4)
    assert counted.merges == 2


def test_an_adapter_of_the_routers_own_follows_the_base() -> None:
    model = nn.Sequential(nn.Linear(6, 4).requires_grad_(False))
    one = lora(3, 6, 4)
    RoutedModel(model, AdapterBank([_expert("0", lora(2, 6, 4))]), Fixed(one))
    base = model[0].base_layer
    model(X)
    base.weight.mul_(2.0)
    torch.testing.assert_close(model(X), base(X) + X @ one.delta_OI().T, atol=1e-4, rtol=1e-4)


def test_a_weight_of_the_base_is_not_merged_away() -> None:
    bank = module_bank([2, 2, 2], dtype=torch.float32)
    routing = Routing(
        weights=SAME[:, None, None], normalised=False, base=torch.full((1, 1, 1), 0.5)
    )
    assert Static().forward(X, layer(bank), bank, routing) is None
