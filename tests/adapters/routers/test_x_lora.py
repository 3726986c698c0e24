"""X-LoRA: two passes inside one call, trained head, and weights that a cache can live with."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import Call, RouteInput
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.layout import load_bank
from crossroads.adapters.routers import build_router
from crossroads.adapters.routers.x_lora import XLora, prompt_scalings
from crossroads.adapters.training import Group, TrainSettings, batch_loss, train
from crossroads.core.errors import InputError, UsageError
from tests.adapters import toys
from tests.adapters.layout.tiny import base, logits, save_with_peft


def routed(n: int = 3, **settings: object) -> RoutedModel:
    model = toys.tiny_llama()
    found = RoutedModel(model, AdapterBank(toys.strangers(model, n)), XLora(**settings))  # type: ignore[arg-type]
    found.checks = True
    return found


def weights(found: RoutedModel) -> list[Tensor]:
    return [r.dense(found.bank.layers[layer].n_experts) for layer, r in found.last_routings.items()]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"temperature": 2.0}, {"softmax_temperature": 2.0}),
        ({"k": 1}, {"top_k_lora": 1}),
        (
            {"depth": 3, "hidden": 8, "by_layer": True},
            {"xlora_depth": 3, "xlora_size": 8, "layerwise_scalings": True},
        ),
    ],
)
def test_logits_are_peft_s_with_the_same_numbers(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    import peft

    folders = {str(number): str(tmp_path / str(number)) for number in range(3)}
    for number, folder in folders.items():
        save_with_peft(Path(folder), seed=int(number))
    model = base()
    model.config.use_cache = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.XLoraConfig(
            task_type="CAUSAL_LM", hidden_size=16, adapters=folders, **{"xlora_depth": 1, **theirs}
        )
        torch.manual_seed(0)
        other = peft.get_peft_model(model, config).eval()
    layers = other.base_model.internal_xlora_classifier.layers
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    linear[-1].weight.data *= 5  # so that weights differ
    expected = logits(other)
    bank, router = load_bank(tmp_path), XLora(**ours)
    mine = base()
    RoutedModel(mine, bank, router)
    assert len(router.head) == len(linear)
    for own, given in zip(router.head, linear, strict=True):
        own.load_state_dict(given.state_dict())
    if router.by_layer:  # PEFT counts layers in the order of the model
        order = [name for name, _ in base().named_modules() if name in bank.layers]
        rows = torch.tensor([order.index(layer) for layer in bank.layers])
        for values in router.head[-1].parameters():
            values.data = values.data.unflatten(0, (-1, 3))[rows].flatten(0, 1)
    torch.testing.assert_close(logits(mine), expected, atol=1e-4, rtol=1e-4)
    assert (expected - logits(base())).abs().max() > 1e-2


def test_weights_are_those_of_the_base_model_s_last_hidden_states() -> None:
    found = routed(temperature=2.0)
    router = found.router
    assert isinstance(router, XLora)
    found.model(toys.ids())
    base = toys.tiny_llama().model(toys.ids()).last_hidden_state
    wanted = torch.softmax(router.head[0](base) / 2.0, -1)
    for seen in weights(found):
        torch.testing.assert_close(seen[:, :, 0], wanted)


def test_layers_may_be_weighed_apart() -> None:
    found = routed(by_layer=True)
    found.model(toys.ids())
    first, second, *_ = weights(found)
    assert first.shape == second.shape == (3, 7, 1, 3)
    assert not torch.equal(first, second)


def test_the_largest_weights_are_kept_as_they_are() -> None:
    dense, sparse = routed(), routed(k=2)
    dense.model(toys.ids())
    sparse.model(toys.ids())
    for all_of_them, kept in zip(weights(dense), weights(sparse), strict=True):
        smallest = all_of_them.argmin(-1, keepdim=True)
        torch.testing.assert_close(kept, all_of_them.scatter(-1, smallest, 0.0))


def test_weights_are_shared_among_the_experts_that_adapt_a_layer() -> None:
    model = toys.tiny_llama()
    whole, part = toys.strangers(model, 2)
    first = next(iter(part.modules))
    rest = {layer: lora for layer, lora in part.modules.items() if layer != first}
    for k in (0, 1):
        bank, router = AdapterBank([whole, replace(part, modules=rest)]), XLora(k=k)
        router.prepare(bank)
        told = Call(scalings=torch.tensor([[[[0.25, 0.75]]]]))
        given = [
            RouteInput(module=layer, x_BTI=torch.ones(1, 1, module.inputs), bank=module, call=told)
            for layer, module in bank.layers.items()
        ]
        found = {one.module: router.route(one).dense(2).flatten().tolist() for one in given}
        assert found.pop(first) == [1.0, 0.0]
        assert [*found.values()] == [[0.25, 0.75] if k == 0 else [0.0, 0.75]] * len(rest)


def test_training_moves_the_head_alone_and_the_loss_falls() -> None:
    found = routed(depth=2, hidden=16)
    data = toys.batch(toys.ids(8, 12))
    frozen = {name: p.clone() for name, p in found.model.named_parameters()}
    losses = train(
        lambda step: batch_loss(found, data, step=step, seed=0),
        [Group(parameters=[*found.router.parameters()], lr=3e-2)],
        TrainSettings(steps=30),
        modules=[found.router],
    )
    assert losses[-1] < losses[0]
    assert all(torch.equal(frozen[name], p) for name, p in found.model.named_parameters())


def test_weights_of_the_prompt_can_be_used_with_a_cache() -> None:
    found = routed()
    prompt = toys.ids(2, 5)
    padded = torch.cat([prompt, torch.zeros(2, 2, dtype=torch.long)], 1)
    mask = torch.arange(7).expand(2, 7) < 5
    scalings = prompt_scalings(found, prompt)
    torch.testing.assert_close(prompt_scalings(found, padded, mask), scalings)
    assert scalings.shape == (2, 1, 1, 3)
    with torch.no_grad(), calling(scalings=scalings):
        whole = found.model(prompt).logits
        first = found.model(prompt[:, :3], use_cache=True)
        rest = found.model(prompt[:, 3:], past_key_values=first.past_key_values).logits
        written = found.model.generate(prompt, max_new_tokens=4, do_sample=False)
        slow = found.model.generate(prompt, max_new_tokens=4, do_sample=False, use_cache=False)
    torch.testing.assert_close(rest, whole[:, 3:], atol=1e-4, rtol=0)
    assert torch.equal(written, slow)


def test_two_passes_refuse_a_cache_and_do_without_one() -> None:
    found, prompt = routed(), toys.ids(1, 5)
    with pytest.raises(InputError, match="use_cache=False"):
        found.model.generate(prompt, max_new_tokens=4, do_sample=False)
    written = found.model.generate(prompt, max_new_tokens=4, do_sample=False, use_cache=False)
    assert written.shape == (1, 9)


def test_heads_are_the_same_for_the_same_seed_and_stay_with_their_experts() -> None:
    first, second, other = routed(), routed(), routed(seed=1)
    assert torch.equal(first.router.head[0].weight, second.router.head[0].weight)
    assert not torch.equal(first.router.head[0].weight, other.router.head[0].weight)
    head = first.router.head
    first.refresh()
    assert first.router.head is head
    first.bank.remove("e2")
    first.model(toys.ids())
    assert first.router.head[0].out_features == 2


def test_wrong_use_is_named() -> None:
    model = toys.tiny_llama()
    uniform = RoutedModel(model, AdapterBank(toys.strangers(model, 2)), build_router("uniform"))
    with pytest.raises(InputError, match="router is 'uniform', not 'x-lora'"):
        prompt_scalings(uniform, toys.ids())
    for wrong in ({"depth": 0}, {"hidden": 0}, {"width": -1}):
        with pytest.raises(UsageError, match="x-lora: expected depth and hidden of at least 1"):
            XLora(**wrong)  # type: ignore[arg-type]
    router = build_router("x-lora:k=2:by_layer=true")
    assert build_router("x-lora", **router.settings()).settings() == router.settings()


@pytest.mark.parametrize("settings", [{}, {"depth": 2, "hidden": 8}, {"by_layer": True}])
def test_what_the_head_learnt_stays_with_its_experts(
    settings: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    found = routed(**settings)
    ids = toys.ids()
    with torch.no_grad():
        found.model(ids)
        before = weights(found)
        found.bank.rename("e0", "z")
        found.bank.add(found.bank.remove("e1"))  # e1 comes last
        found.model(ids)
        after = weights(found)
        assert not caplog.text
        for one, other in zip(before, after, strict=True):
            torch.testing.assert_close(other, one[..., [0, 2, 1]])
        found.bank.add(toys.strangers(toys.tiny_llama(), 4)[3])
        found.model(ids)
    assert "train it again" in caplog.text
    kept = [w[..., :3] / w[..., :3].sum(-1, keepdim=True) for w in weights(found)]
    for one, other in zip(after, kept, strict=True):
        torch.testing.assert_close(other, one)


def test_a_head_of_another_width_than_the_model_s_is_refused() -> None:
    with pytest.raises(InputError, match=r"its head reads 9 numbers, .* have 16; .* width=16"):
        routed(width=9).model(toys.ids())
