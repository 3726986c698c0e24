"""Swapping a name swaps the router of a whole model, at equal active compute."""

from __future__ import annotations

import pytest
import torch

from crossroads.core.errors import InputError, UsageError
from crossroads.core.routed import RouteContext, routed_layers
from crossroads.models.blocks import MLP
from crossroads.models.decoder import DecoderConfig, DecoderLM
from crossroads.moe.building import MoEFactory, MoESpec
from crossroads.moe.experts import FFNBank
from crossroads.moe.routers import router_class

CONFIG = DecoderConfig(vocab_size=17, width=16, num_layers=4, num_heads=2, max_length=16)


def model(**spec: object) -> DecoderLM:
    torch.manual_seed(0)
    made = MoESpec(**{"dense_hidden": 32, **spec})  # type: ignore[arg-type]
    return DecoderLM(CONFIG, sublayer=MoEFactory(made, 4))


def flops(made: DecoderLM) -> float:
    tokens = torch.randint(0, 17, (2, 8), generator=torch.Generator().manual_seed(0))
    return float(made(tokens).flops)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dense_hidden": -3}, "dense_hidden: expected at least 1, got -3"),
        ({"n_experts": 0}, "n_experts: expected at least 1"),
        ({"hidden": 0}, "hidden: expected at least 1"),
        ({"shared": -1}, "shared: expected at least 0"),
        ({"n_iter": 0}, "n_iter: expected at least 1, got 0"),
        ({"activation": "foo"}, "activation: expected one of swiglu, gelu"),
    ],
)
def test_sizes_and_activations_that_cannot_be_are_refused(wrong: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MoESpec(**wrong)  # type: ignore[arg-type]
    if wrong == {"activation": "foo"}:
        with pytest.raises(UsageError, match=message):
            FFNBank(4, 4, 2, **wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="activation"):
            MLP(4, 4, "foo")


@pytest.mark.parametrize("num_layers", [0, 3, 5])
def test_a_factory_of_other_layers_than_the_model_has_is_refused(num_layers: int) -> None:
    with pytest.raises(UsageError, match="num_layers"):
        DecoderLM(CONFIG, sublayer=MoEFactory(MoESpec(), num_layers))


def test_a_chain_has_the_residuals_that_the_spec_says() -> None:
    first = routed_layers(model(loop="released", inner_residual=False, outer_residual=True))[0]
    assert (first.loop, first.inner_residual, first.outer_residual) == ("released", False, True)


def test_silu_experts_stand_beside_silu_layers() -> None:
    made = model(activation="silu", layers="odd", shared=1)
    assert torch.isfinite(made(torch.zeros(1, 4, dtype=torch.int64)).out).all()


@pytest.mark.parametrize("router", ["switch", "top2"])
def test_arms_spend_the_same_apart_from_the_router(router: str) -> None:
    dense, routed = flops(model(router="dense")), flops(model(router=router))
    gate = 2 * 16 * 8 * 16 * 4  # 16 tokens, 8 experts, 4 layers
    assert routed == dense + gate


def test_several_shared_experts_are_one_feed_forward_of_their_width() -> None:
    routed = [routed_layers(model(shared=n, hidden=8))[0] for n in (1, 3)]
    widths = [layer.shared.up.weight.shape[0] for layer in routed]
    assert widths == [8, 24]
    assert routed[1].shared_flops == 3 * routed[0].shared_flops


def test_backbone_of_a_seed_is_the_same_in_every_arm() -> None:
    first, second = model(router="switch"), model(router="dense")
    torch.testing.assert_close(first.embedding.weight, second.embedding.weight)
    torch.testing.assert_close(
        first.blocks[3].attention.qkv.weight, second.blocks[3].attention.qkv.weight
    )


@pytest.mark.parametrize(
    ("layers", "expected"), [("all", [0, 1, 2, 3]), ("odd", [1, 3]), ("even", [0, 2]), ((3,), [3])]
)
def test_layers_says_which_places_are_routed(layers: object, expected: list[int]) -> None:
    assert [m.layer for m in routed_layers(model(layers=layers))] == expected


class Everywhere(router_class("switch")):  # type: ignore[misc]
    name = "everywhere"
    shared_across_layers = True


def test_a_shared_router_is_one_object_in_parameters_and_state() -> None:
    made = model(router=f"{__name__}.Everywhere")
    routers = {id(layer.routers[0]) for layer in routed_layers(made)}
    assert len(routers) == 1
    assert [name for name in made.state_dict() if "gate" in name and "router" in name] == [
        "shared.router_0.gate.weight"
    ]
    loss = made(torch.zeros(1, 4, dtype=torch.int64), context=RouteContext(training=True)).out.sum()
    loss.backward()
    assert made.shared["router_0"].gate.weight.grad is not None


def test_a_sharing_plan_names_the_experts_of_its_routed_layers() -> None:
    made = model(router="omni:share=1x2-1x4", layers="odd")
    assert [layer.routers[0].n_experts for layer in routed_layers(made)] == [2, 4]
    with pytest.raises(UsageError, match="covers 2 layers, the model routes 4"):
        model(router="omni:share=1x2-1x4")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"router": "swich"}, "switch"),
        ({"layers": (4,)}, "the model has layers 0 to 3"),
        ({"layers": "some"}, "expected all, odd, even"),
    ],
)
def test_bad_specs_are_refused_before_a_layer_is_made(
    spec: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        model(**spec)


def test_a_factory_that_makes_no_module_is_told_so() -> None:
    with pytest.raises(UsageError, match="factory gave None for layer 0, expected a module"):
        DecoderLM(CONFIG, sublayer=lambda layer, width, norm: None)  # type: ignore[arg-type, return-value]


def test_a_context_is_a_context() -> None:
    tokens, facts = torch.zeros(1, 4, dtype=torch.int64), {"pos": torch.arange(4)}
    made = model()
    with pytest.raises(InputError, match="context: expected a RouteContext, got dict"):
        made(tokens, context=facts)
    with pytest.raises(InputError, match="context: expected a RouteContext, got dict"):
        made.blocks[0].ffn(torch.zeros(1, 4, CONFIG.width), facts)
