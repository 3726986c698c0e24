"""Gates that stay with their experts."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.linear_gates import LinearGates
from tests.adapters.toys import LLAMA_LAYERS, experts, tiny_llama


def made(count: int = 3) -> tuple[AdapterBank, LinearGates]:
    bank = AdapterBank(experts(tiny_llama(), [f"e{i}" for i in range(count)]))
    gates = LinearGates("input", nn.init.normal_)
    gates.follow(bank)
    return bank, gates


def test_layers_of_one_input_share_a_gate() -> None:
    bank, gates = made()
    assert len(gates.weights) == 2 * 4  # queries and values, out, up, down of two blocks
    assert all(len(w) == 3 for w in gates.weights)
    layer = next(iter(bank.layers))
    x = torch.randn(1, 2, 16)
    expected = x @ gates.weights[0].T
    torch.testing.assert_close(gates.scores(layer, x), expected)


def test_gates_of_the_same_experts_are_the_same_parameters() -> None:
    bank, gates = made()
    before = list(gates.weights)
    gates.follow(bank)
    assert all(one is other for one, other in zip(before, gates.weights, strict=True))


def test_rows_stay_with_experts_that_move_or_are_renamed(caplog: pytest.LogCaptureFixture) -> None:
    bank, gates = made()
    before = [w.clone() for w in gates.weights]
    for weight in gates.weights:
        weight.requires_grad_(True)
    bank.rename("e1", "new")
    bank.add(bank.remove("e0"))
    with caplog.at_level(logging.WARNING):
        gates.follow(bank)
    assert bank.names == ("new", "e2", "e0")
    for one, other in zip(before, gates.weights, strict=True):
        assert torch.equal(other, one[[1, 2, 0]])
        assert other.requires_grad
    assert not caplog.text


def test_experts_that_come_later_start_as_drawn_and_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bank, gates = made()
    before = [w.clone() for w in gates.weights]
    bank.add(experts(tiny_llama(), ["a", "b", "c", "d"], ends=LLAMA_LAYERS)[3])
    with caplog.at_level(logging.WARNING):
        gates.follow(bank)
    assert "train the router again" in caplog.text
    for one, other in zip(before, gates.weights, strict=True):
        assert torch.equal(other[:3], one)
        assert other[3].any()
