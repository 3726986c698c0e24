"""Experts and routers trained together, or one of them alone."""

from __future__ import annotations

import copy

import pytest
import torch

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.base_layers import layer_size
from crossroads.adapters.fly import fly_bank
from crossroads.adapters.joint import drift, train_jointly
from crossroads.adapters.routers.dynmole import DynMoLE
from crossroads.adapters.routers.flylora import FlyLoRA
from crossroads.adapters.routers.lora_mixer import LoRAMixer
from crossroads.adapters.routers.uniform import Uniform
from crossroads.adapters.texts import TextBatch
from crossroads.adapters.training import TrainSettings
from crossroads.core.errors import UsageError
from tests.adapters.toys import bank_for, ids, linear_layers, tiny_llama

SETTINGS = TrainSettings(steps=3, warmup=1)


def batch_of(step: int) -> TextBatch:
    ids_BT = ids(4, 6, seed=step)
    real = torch.ones_like(ids_BT, dtype=torch.bool)
    return TextBatch(
        ids_BT=ids_BT, mask_BT=real, answer_BT=real, labels_B=torch.tensor([0, 0, 1, 1])
    )


def changed(before: AdapterBank, after: AdapterBank) -> set[str]:
    old, new = before.state_dict(), after.state_dict()
    return {
        key.rpartition(".")[2] for key, value in new.items() if not torch.equal(old[key], value)
    }


def test_experts_and_gates_learn_together_and_are_frozen_again() -> None:
    model = tiny_llama()
    bank, router = bank_for(model), DynMoLE()
    router.prepare(bank)
    before, gates = copy.deepcopy(bank), [g.clone() for g in router.gates.weights]
    losses = train_jointly(model, bank, router, batch_of, SETTINGS)
    assert len(losses) == 3
    assert changed(before, bank) == {"a_ERI", "b_EOR"}
    assert not any(torch.equal(*pair) for pair in zip(gates, router.gates.weights, strict=True))
    assert not any(p.requires_grad for p in (*bank.parameters(), *router.parameters()))


def test_gates_alone_leave_every_bit_of_the_experts() -> None:
    model = tiny_llama()
    bank, router = bank_for(model), LoRAMixer()
    before = copy.deepcopy(bank)
    train_jointly(model, bank, router, batch_of, SETTINGS, factors="none")
    assert changed(before, bank) == set()


def test_the_hard_stage_trains_the_labelled_experts_alone() -> None:
    model = tiny_llama()
    bank, router = bank_for(model), LoRAMixer(hard=True)
    router.prepare(bank)
    before, gates = copy.deepcopy(bank), [g.clone() for g in router.gates.weights]
    train_jointly(model, bank, router, batch_of, SETTINGS, router_lr=0)
    for layer, module in bank.layers.items():
        moved_E = (module.b_EOR != before.layers[layer].b_EOR).flatten(1).any(1)
        assert moved_E.tolist() == [True, True, False, False]
    assert all(torch.equal(*pair) for pair in zip(gates, router.gates.weights, strict=True))


def test_experts_that_are_preserved_move_less() -> None:
    model = tiny_llama()
    moved = []
    for preserve in (0.0, 100.0):
        bank = bank_for(model)
        start = [p.detach().clone() for p in bank.parameters()]
        train_jointly(
            model,
            bank,
            LoRAMixer(),
            batch_of,
            TrainSettings(steps=12, clip=None),
            preserve=preserve,
        )
        moved.append(float(drift(list(bank.parameters()), start)))
    assert 0 < moved[1] < moved[0]


def test_flylora_trains_b_alone_and_its_biases_follow_every_step() -> None:
    model = tiny_llama()
    layers = dict(model.named_modules())
    sizes = {name: layer_size(layers[name]) for name in linear_layers(model)}
    bank = fly_bank(sizes, ranks=8, k=2)  # type: ignore[arg-type]
    router = FlyLoRA(k=2, rate=0.5)
    before = copy.deepcopy(bank)
    train_jointly(model, bank, router, batch_of, SETTINGS, factors="up")
    assert changed(before, bank) == {"b_EOR"}
    assert router.bias_LE.any(-1).all()
    # Three steps of 0, -0.5 or +0.5: a rank that were counted twice a step would be the same, one
    # that was updated twice a step could be further away.
    assert router.bias_LE.abs().max() <= 1.5


def test_where_nothing_is_trained_it_says_so() -> None:
    model = tiny_llama()
    with pytest.raises(UsageError, match="nothing is trained"):
        train_jointly(model, bank_for(model), Uniform(), batch_of, SETTINGS, factors="none")
    assert not any(type(layer).__name__ == "RoutedLinear" for layer in model.modules())
