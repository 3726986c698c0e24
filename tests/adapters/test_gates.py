"""Training of gates: nothing else moves, one expert at a time."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch
from torch import nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.gates import train_gate
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers.phatgoose import GateTraining
from crossroads.adapters.texts import answer_nll
from crossroads.adapters.training import TrainSettings
from crossroads.core.errors import InputError
from tests.adapters import toys


def test_training_a_gate_changes_no_other_number() -> None:
    model = toys.tiny_llama()
    expert = toys.strangers(model, 1)[0]
    before = hashes(model), hashes(AdapterBank([expert]))
    data = toys.batch(toys.ids(8, 12))
    trained = train_gate(model, expert, lambda step: data, TrainSettings(steps=12))
    bare = replace(trained, artifacts={})
    assert (hashes(model), hashes(AdapterBank([bare]))) == before
    assert not any(p.grad is not None or p.requires_grad for p in model.parameters())
    assert trained.artifacts["gate"].keys() == expert.modules.keys()
    assert all(bool(v.std() > 0) for v in trained.artifacts["gate"].values())


def test_a_gate_starts_at_one_half_and_training_lowers_the_loss() -> None:
    model = toys.tiny_llama()
    expert = toys.strangers(model, 1, scale=8.0)[
        0
    ]  # random factors do harm: the gate learns to close
    data = toys.batch(toys.ids(8, 12))
    bank, router = AdapterBank([expert]), GateTraining()
    routed = RoutedModel(model, bank, router)
    start = answer_nll(model, data).mean().item()
    for routing in routed.last_routings.values():
        assert (routing.weights == 0.5).all()
    routed.unwrap()
    trained = train_gate(model, expert, lambda step: data, TrainSettings(steps=40))
    with torch.no_grad():
        for vector, gate_I in zip(router.vectors, trained.artifacts["gate"].values(), strict=True):
            vector.copy_(gate_I)
    routed = RoutedModel(model, bank, router)
    assert answer_nll(model, data).mean().item() < start
    gates = torch.cat([r.weights.detach().flatten() for r in routed.last_routings.values()])
    assert float((gates - 0.5).abs().mean()) > 0.01


def test_gates_are_trained_with_one_expert_at_a_time() -> None:
    bank = AdapterBank(toys.strangers(toys.tiny_llama(), 2))
    with pytest.raises(InputError, match="a bank of one expert, got 2"):
        GateTraining().prepare(bank)


def hashes(module: nn.Module) -> dict[str, str]:
    return {
        name: hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
        for name, value in module.state_dict().items()
    }
