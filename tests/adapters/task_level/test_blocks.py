"""Whole blocks as experts: outputs of blocks are mixed, not outputs of linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from crossroads.adapters.bank import AdapterBank, Expert
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import Call, RouteInput, Router, Routing
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.recording import Recorder
from crossroads.adapters.routers.phatgoose import Phatgoose
from crossroads.adapters.routers.task_moe import TaskMoE
from crossroads.adapters.scopes import Scope
from crossroads.adapters.shares import shares_of
from crossroads.adapters.task_level.blocks import RoutedBlocks
from crossroads.adapters.telemetry import Telemetry
from crossroads.core.errors import InputError
from crossroads.core.routed import AuxTerm
from tests.adapters import toys

Tensor = torch.Tensor
TASKS = torch.tensor([0, 2, 1])


class Given(Router):
    """The same weights in every block."""

    name: ClassVar[str] = "given"
    scope: ClassVar[Scope] = "layer"

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.weights_E = torch.nn.Parameter(torch.zeros(experts))

    def choose(self, expert: int) -> None:
        self.weights_E.data = torch.eye(len(self.weights_E))[expert]

    def route(self, given: RouteInput) -> Routing:
        return Routing(weights=self.weights_E[None, None, None])

    def losses(self, decided: Mapping[str, Routing], call: Call) -> Mapping[str, AuxTerm]:
        return {"decisions": AuxTerm(torch.tensor(float(len(decided))), 1.0)}


def router(select: str = "softmax") -> TaskMoE:
    made = TaskMoE(tasks=3, width=8, hidden=8, select=select, distance=0.5)
    made.set_vectors(20 * made.vectors_TD)
    return made


def logits(routed: RoutedModel, **call: Any) -> Tensor:
    with calling(task_ids=TASKS, **call):
        found: Tensor = routed.model(toys.ids(3, 5), use_cache=False).logits
    return found


def test_one_hot_routes_agree_with_mixing_in_the_layers_and_dense_ones_do_not() -> None:
    model = toys.tiny_llama()
    bank = toys.bank_for(model, 3)
    for select, agree in (("straight-through", True), ("softmax", False)):
        made = router(select)
        linear = RoutedModel(model, bank, made)
        wanted = logits(linear)
        linear.unwrap()
        blocks = RoutedBlocks(model, bank, made)
        found = logits(blocks)
        blocks.unwrap()
        assert torch.allclose(found, wanted, atol=1e-5) == agree


def test_a_block_returns_the_weighted_outputs_of_the_block_with_each_expert() -> None:
    model = toys.tiny_llama(num_hidden_layers=1)
    bank = toys.bank_for(model, 2)
    made = router()
    inputs: dict[str, Any] = {}
    block = model.model.layers[0]
    hook = block.register_forward_pre_hook(
        lambda _, args, more: inputs.update(args=args, more=more), with_kwargs=True
    )
    model(toys.ids(3, 5), use_cache=False)
    hook.remove()
    weights_BE = []
    outputs = []
    for name in bank.names:
        alone = RoutedModel(model, bank.subset([name]), TaskMoE(select="average"))
        with torch.no_grad(), calling(task_ids=TASKS * 0):
            logits(alone)  # a pass of its own begins; the block is then run inside it
            outputs.append(model.model.layers[0](*inputs["args"], **inputs["more"]))
        alone.unwrap()
    blocks = RoutedBlocks(model, bank, made)
    found: dict[str, Tensor] = {}
    model.model.layers[0].register_forward_hook(lambda *seen: found.update(out=seen[-1]))
    with torch.no_grad():
        logits(blocks)
    weights_BE = blocks.current.decided["model.layers.0"].dense(2)[:, 0, 0]
    wanted = sum(weights_BE[:, e, None, None] * outputs[e] for e in range(2))
    assert not torch.allclose(weights_BE[0], weights_BE[1])
    torch.testing.assert_close(found["out"], wanted, atol=1e-5, rtol=1e-4)


def test_taking_out_puts_the_very_same_blocks_back() -> None:
    model = toys.tiny_llama()
    before = dict(model.named_modules())
    bank = toys.bank_for(model, 2)
    blocks = RoutedBlocks(model, bank, router())
    with torch.no_grad():
        plain = blocks.unwrap()(toys.ids(3, 5)).logits
        assert dict(model.named_modules()) == before
        blocks = RoutedBlocks(model, bank, router())
        with blocks.disabled():
            assert torch.equal(model(toys.ids(3, 5)).logits, plain)
        bank.remove("e0")  # noticed by the next pass
        logits(blocks)
    assert blocks.current.decided["model.layers.1"].weights.shape[-1] == 1
    blocks.unwrap()
    assert dict(model.named_modules()) == before


def test_gradient_and_auxiliary_losses_reach_experts_and_router() -> None:
    model = toys.tiny_llama()
    blocks = RoutedBlocks(model, toys.bank_for(model, 2), router("straight-through"))
    trained = [*blocks.bank.parameters(), *blocks.deciding.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    output = logits(blocks, training=True)
    charged = blocks.aux_loss()
    assert isinstance(charged, Tensor)
    assert charged.item() > 0
    (output.square().mean() + charged).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
    assert blocks.deciding.vectors_TD.grad.any()  # type: ignore[union-attr]


def test_a_weight_of_zero_has_the_gradient_of_what_its_expert_would_have_said() -> None:
    model = toys.tiny_llama(num_hidden_layers=1)
    made = Given(3)
    RoutedBlocks(model, toys.bank_for(model, 3), made)
    said: list[Tensor] = []
    model.model.layers[0].register_forward_hook(lambda *seen: said.append(seen[-1]))
    with torch.no_grad():
        for expert in range(3):
            made.choose(expert)
            model(toys.ids(2, 5), use_cache=False)
    made.choose(1)
    model(toys.ids(2, 5), use_cache=False)
    *alone, together = said
    assert torch.equal(together, alone[1])
    told = torch.randn(together.shape, generator=toys.rng(0))
    (told * together).sum().backward()
    wanted_E = torch.stack([(told * one).sum() for one in alone])
    torch.testing.assert_close(made.weights_E.grad, wanted_E, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_is_refused_by_name(reentrant: bool) -> None:
    model = toys.tiny_llama()
    RoutedBlocks(model, toys.bank_for(model, 2), router())
    model.train()
    # The newer name first; the older one warns.
    enable, disable = (
        getattr(model, f"activation_checkpointing_{what}", None)
        or getattr(model, f"gradient_checkpointing_{what}")
        for what in ("enable", "disable")
    )
    enable({"use_reentrant": reentrant})
    with (
        pytest.raises(InputError, match=r"block model\.layers\.0: .*switch gradient checkpointing"),
        calling(task_ids=TASKS),
    ):
        model(toys.ids(3, 5), use_cache=False)
    disable()
    with calling(task_ids=TASKS):
        model(toys.ids(3, 5), use_cache=False)
    # What somebody else's checkpointing does: a part of a block is run outside of it.
    with pytest.raises(
        InputError, match=r"block model\.layers\.1: .*switch gradient checkpointing"
    ):
        model.model.layers[1].mlp.up_proj(torch.zeros(3, 5, 16))


def test_generation_goes_without_a_cache() -> None:
    model = toys.tiny_llama()
    bank, made = toys.bank_for(model, 2), router("straight-through")
    blocks = RoutedBlocks(model, bank, made)
    told = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    with calling(task_ids=TASKS):
        found = model.generate(toys.ids(3, 4), use_cache=False, **told)
        with pytest.raises(InputError, match="use_cache=False"):
            model.generate(toys.ids(3, 4), **told)
    blocks.unwrap()
    RoutedModel(model, bank, made)
    with calling(task_ids=TASKS):
        assert torch.equal(model.generate(toys.ids(3, 4), **told), found)


def test_routers_of_other_scopes_and_layers_outside_of_blocks_are_refused() -> None:
    model = toys.tiny_llama()
    with pytest.raises(InputError, match="its scope is 'module'; use RoutedModel"):
        RoutedBlocks(model, toys.bank_for(model, 2), Phatgoose())
    before = dict(model.named_modules())
    some = toys.experts(model, ["a", "b"], ends=("q_proj", "lm_head"), kinds=())
    with pytest.raises(InputError, match="lm_head: lies in no block"):
        RoutedBlocks(model, AdapterBank(some), router())
    assert dict(model.named_modules()) == before
    RoutedModel(model, AdapterBank(some), router())


def test_a_block_that_is_there_twice_is_refused() -> None:
    model = toys.tiny_llama()
    model.extra = model.model.layers[0]
    before = dict(model.named_modules())
    with pytest.raises(InputError, match=r"layers\.0: the model has it as extra too"):
        RoutedBlocks(model, toys.bank_for(model, 2), router())
    assert dict(model.named_modules()) == before


def test_a_refused_change_of_the_bank_keeps_the_blocks_and_is_refused_again() -> None:
    model = toys.tiny_llama()
    bank = toys.bank_for(model, 2)
    blocks = RoutedBlocks(model, bank, router())
    inside = dict(model.named_modules())
    with torch.no_grad():
        before = logits(blocks)
        bank.add(Expert(name="bad", modules={"lm_head": toys.lora(1, 16, 32)}))
        for _ in range(2):
            with pytest.raises(InputError, match="lm_head: lies in no block"):
                logits(blocks)
            assert dict(model.named_modules()) == inside
        bank.remove("bad")
        assert torch.equal(logits(blocks), before)


def test_layers_are_reported_with_the_decision_of_their_block() -> None:
    model = toys.tiny_llama()
    adapted = toys.linear_layers(model)
    made = Given(3)
    made.weights_E.data = torch.tensor([0.5, 0.3, 0.2])
    blocks = RoutedBlocks(model, toys.bank_for(model, 3), made)
    telemetry, recorder = Telemetry(blocks), Recorder(blocks)
    with torch.no_grad(), telemetry.on(), recorder.on():
        model(toys.ids(2, 5), use_cache=False)
    layers = telemetry.report()["layers"]
    assert set(layers) == set(adapted) == set(blocks.last_routings)
    for facts in layers.values():
        assert facts["tokens"] == 10
        assert list(facts["mean_share"].values()) == pytest.approx([0.5, 0.3, 0.2])
    assert list(shares_of(blocks).experts.values()) == pytest.approx([0.5, 0.3, 0.2])
    assert recorder.trace().expert.tolist() == [[[0, 1, 2]] * len(layers)] * 10
    assert list(blocks.current.decided) == ["model.layers.0", "model.layers.1"]
    assert blocks.aux_loss() == 2.0  # decisions, one a block


def test_padding_is_left_out_of_what_is_reported_of_blocks() -> None:
    model = toys.tiny_llama()
    blocks = RoutedBlocks(model, toys.bank_for(model, 3), router("straight-through"))
    telemetry = Telemetry(blocks)
    mask = torch.ones(3, 5, dtype=torch.long)
    mask[0, :2] = 0
    with torch.no_grad(), telemetry.on(), calling(task_ids=TASKS):
        model(toys.ids(3, 5), attention_mask=mask, use_cache=False)
    (first, *_) = blocks.current.decided.values()
    chosen_B = first.dense(3)[:, 0, 0].argmax(-1).tolist()
    counts = [sum(n for e, n in zip(chosen_B, (3, 5, 5), strict=True) if e == x) for x in range(3)]
    (layer, *_) = telemetry.report()["layers"].values()
    assert (layer["tokens"], list(layer["counts"].values())) == (13, counts)


def test_an_expert_that_does_not_adapt_a_layer_has_no_share_there() -> None:
    model = toys.tiny_llama()
    first, second = toys.experts(model, ["a", "b"])
    *layers, last = first.modules
    fewer = replace(second, modules={x: second.modules[x] for x in layers}, artifacts={})
    made = Given(2)
    made.weights_E.data = torch.tensor([0.25, 0.75])
    blocks = RoutedBlocks(model, AdapterBank([first, fewer]), made)
    with torch.no_grad():
        model(toys.ids(2, 5), use_cache=False)
    found = blocks.last_routings
    assert found[layers[-1]].weights.flatten().tolist() == [0.25, 0.75]
    assert found[last].weights.flatten().tolist() == [0.25, 0.0]  # of "b" it is the frozen layer
    assert not found[last].normalised
