"""One pass: masks of its stacks, and decisions that layers share or make again."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank, Expert
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import RouteInput, Router, Routing
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from crossroads.adapters.routers.dynmole import DynMoLE
from crossroads.adapters.scopes import Scope
from crossroads.core.gating import softmax
from tests.adapters.gated import Gated
from tests.adapters.toys import (
    bank_for,
    experts,
    ids,
    lora,
    tiny_llama,
    tiny_t5,
)

T5_LAYERS = ("q", "k", "v", "o", "wi", "wo")


def test_the_models_own_mask_reaches_router_and_record() -> None:
    model = tiny_llama()
    router = Gated()
    routed = RoutedModel(model, bank_for(model, 3), router)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with torch.no_grad():
        model(ids(2, 4), attention_mask=mask)
        assert all(torch.equal(a.call.mask_BT, mask.bool()) for a in router.asked)
        assert all(
            s.mask_BT is not None and s.shape == (2, 4) for s in routed.current.seen.values()
        )
        with calling(mask=torch.ones(2, 4)):  # what the caller says goes before
            model(ids(2, 4), attention_mask=mask)
    assert router.asked[-1].call.mask_BT is not None
    assert bool(router.asked[-1].call.mask_BT.all())


def test_an_encoder_and_a_decoder_have_masks_of_their_own() -> None:
    model = tiny_t5()
    router = Gated()
    routed = RoutedModel(model, bank_for(model, 3, ends=T5_LAYERS), router)
    encoder_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    with torch.no_grad():
        model(input_ids=ids(2, 5), attention_mask=encoder_mask, decoder_input_ids=ids(2, 3, seed=1))
    for name, seen in routed.current.seen.items():
        of_encoder = name.startswith("encoder") or name.endswith(
            ("EncDecAttention.k", "EncDecAttention.v")
        )
        assert seen.shape == ((2, 5) if of_encoder else (2, 3)), name
        assert seen.routing.weights.shape[:2] == seen.shape
        if of_encoder:
            assert seen.mask_BT is not None
            assert torch.equal(seen.mask_BT, encoder_mask.bool())
        else:
            assert seen.mask_BT is None


@pytest.mark.parametrize("scope", ["module", "group", "layer", "model"])
def test_an_encoder_and_a_decoder_generate_whatever_the_scope(scope: Scope) -> None:
    model = tiny_t5()
    RoutedModel(model, bank_for(model, 3, ends=T5_LAYERS), Gated(scope))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    with calling(task_ids=torch.tensor([1, 4])):
        cached = model.generate(ids(2, 5), num_beams=2, **options)
        plain = model.generate(ids(2, 5), num_beams=2, use_cache=False, **options)
    assert torch.equal(cached, plain)
    with calling(task_ids=torch.tensor([4])):
        alone = model.generate(
            ids(2, 5)[1:, :3], num_beams=2, **{**options, "attention_mask": mask[1:, :3]}
        )
    assert torch.equal(alone[0], cached[1])


@pytest.mark.parametrize(
    ("scope", "decisions"),
    [("module", 10), ("input", 2 * 4), ("layer", 2), ("group", 4), ("model", 1)],
)
def test_layers_of_a_scope_share_one_decision(scope: Scope, decisions: int) -> None:
    model = tiny_llama()
    router = Gated(scope)
    routed = RoutedModel(model, bank_for(model, 3), router)
    with torch.no_grad(), calling(task_ids=torch.tensor([0, 3])):
        model(ids(2, 4))
        assert len(router.asked) == decisions
        model(ids(2, 4))  # a new pass decides anew
    assert len(router.asked) == 2 * decisions
    assert len(routed.last_routings) == 10
    assert len({id(routing) for routing in routed.last_routings.values()}) == decisions
    expected = sum(0.5 * t.aux["size"].value for t in routed.current.decided.values())
    assert float(routed.aux_loss()) == pytest.approx(float(expected))


def _gradients(
    scope: Scope, reentrant: bool | None, *, inside: bool = True
) -> tuple[Tensor, list[Tensor]]:
    model = tiny_llama()
    bank = bank_for(model, 3)
    router = Gated(scope)
    RoutedModel(model, bank, router)
    for module in bank.layers.values():
        module.a_ERI.requires_grad_(True)
    if reentrant is not None:
        model.train()
        name = "activation_checkpointing_enable"  # the newer name
        enable = getattr(model, name, None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    with calling(task_ids=torch.tensor([0, 3])):
        loss = model(ids(2, 6), labels=ids(2, 6), use_cache=False).loss
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    parameters = [router.gate_EI, *(m.a_ERI for m in bank.layers.values())]
    assert all(p.grad is not None for p in parameters)
    return loss.detach(), [p.grad for p in parameters if p.grad is not None]


@pytest.mark.parametrize("scope", ["module", "input", "layer", "group", "model"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("inside", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(
    scope: Scope, reentrant: bool, inside: bool
) -> None:
    loss, expected = _gradients(scope, None)
    other, found = _gradients(scope, reentrant, inside=inside)
    torch.testing.assert_close(other, loss)
    for one, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(one, gradient, atol=1e-6, rtol=1e-4)


def test_a_layer_may_be_left_to_experts_that_others_of_its_scope_lack() -> None:
    class Told(Router):
        name: ClassVar[str] = "told"
        scope: ClassVar[Scope] = "input"

        def route(self, given: RouteInput) -> Routing:
            scores = torch.zeros(1, 1, 1, 2).masked_fill(~given.alive_E, -torch.inf)
            return Routing(weights=softmax(scores))

    model = tiny_llama()
    first, second = experts(model, ["a", "b"], ends=("q_proj", "v_proj"))
    values = {name: one for name, one in second.modules.items() if name.endswith("v_proj")}
    bank = AdapterBank([first, Expert(name="b", modules=values)])
    routed = RoutedModel(model, bank, Told())
    with torch.no_grad():
        model(ids(1, 4))
    for name, routing in routed.last_routings.items():
        expected = [1.0, 0.0] if name.endswith("q_proj") else [0.5, 0.5]
        assert routing.weights.flatten().tolist() == expected, name


def test_one_decision_for_the_model_holds_where_tokens_are_flattened_into_rows() -> None:
    class Flattening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            rows: Tensor = self.second(self.first(x).flatten(0, 1))
            return rows.view(x.shape)

    model = Flattening()
    layers = {name: lora(2, 6, 6, seed=place) for place, name in enumerate(("first", "second"))}
    bank = AdapterBank([Expert(name="a", modules=layers)])
    x = torch.randn(2, 3, 6)
    with torch.no_grad():
        base = model(x)
        RoutedModel(model, bank, build_router("named"))
        with calling(experts=["a", "a"]):
            everywhere = model(x)
        with calling(experts=["a", None]):
            found = model(x)
    torch.testing.assert_close(found, torch.stack([everywhere[0], base[1]]))


@pytest.mark.parametrize("spec", ["dynmole", "lora-mixer", "mogu"])
def test_losses_of_two_stacks_leave_out_the_padding_of_both(spec: str) -> None:
    model = tiny_t5()
    routed = RoutedModel(model, bank_for(model, 3, ends=T5_LAYERS), build_router(spec))
    main, encoder = torch.ones(2, 4).long(), torch.ones(2, 6).long()
    main[1, 3:] = encoder[0, 4:] = 0

    def loss(padding: int, **told: Tensor) -> float:
        x, y = ids(2, 6), ids(2, 4, seed=1)
        x[0, 4:] = y[1, 3:] = padding
        with torch.no_grad(), calling(labels=torch.tensor([0, 1]), training=True, **told):
            model(
                input_ids=x,
                attention_mask=encoder,
                decoder_input_ids=y,
                decoder_attention_mask=main,
            )
            return float(routed.aux_loss())

    found = loss(0)
    assert found == pytest.approx(loss(5), rel=1e-6)
    assert found == pytest.approx(loss(5, mask=main, encoder_mask=encoder), rel=1e-6)
    # A caller who says that all tokens are real is heard, so the padding has a say of its own.
    counted = loss(5, mask=torch.ones(2, 4), encoder_mask=torch.ones(2, 6))
    assert found != pytest.approx(counted, rel=1e-5)
    # A stack of padding alone has no say.
    assert math.isfinite(loss(5, mask=main, encoder_mask=torch.zeros(2, 6)))


def test_entropy_of_two_stacks_is_the_mean_over_the_real_tokens_of_both() -> None:
    model = tiny_t5()
    routed = RoutedModel(model, bank_for(model, 3, ends=T5_LAYERS), DynMoLE(balance=0.0))
    encoder = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    with torch.no_grad(), calling(training=True):
        model(input_ids=ids(2, 5), attention_mask=encoder, decoder_input_ids=ids(2, 3, seed=1))
        found = float(routed.aux_loss())
    each = []
    for seen in routed.current.seen.values():
        assert seen.routing.logits is not None
        unsure_BT = DynMoLE().uncertainty(softmax(seen.routing.logits[:, :, 0]), 3)
        each.append(unsure_BT.flatten() if seen.mask_BT is None else unsure_BT[seen.mask_BT])
    assert found == pytest.approx(0.01 * float(torch.cat(each).mean()), rel=1e-5)


@pytest.mark.parametrize("spec", ["lora-mixer", "dynmole"])
def test_padding_is_left_out_of_losses_whoever_tells_of_it(spec: str) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    found = []
    for told, given in (({"mask": mask}, {}), ({}, {"attention_mask": mask}), ({}, {})):
        model = tiny_llama()
        routed = RoutedModel(model, bank_for(model, 3), build_router(spec))
        with torch.no_grad(), calling(training=True, **told):
            # The same hidden states: who tells of the mask must not change what is routed.
            sight = given or {"attention_mask": _sight(mask)}
            model(ids(2, 5), position_ids=torch.arange(5).expand(2, -1), **sight)
        found.append(float(routed.aux_loss()))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] != pytest.approx(found[2], rel=1e-5)


def _sight(mask_BT: Tensor) -> Tensor:
    """Return which positions see which, (B, 1, T, T): it says nothing about single tokens."""
    length = mask_BT.shape[1]
    is_earlier_TT = torch.ones(length, length, dtype=torch.bool).tril()
    seen = is_earlier_TT & mask_BT.bool()[:, None, :] | torch.eye(length, dtype=torch.bool)
    return seen[:, None]
