"""Which layers can be adapted."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from crossroads.adapters.base_layers import layer_size


def test_linear_layers_of_both_kinds_tell_inputs_and_outputs() -> None:
    assert layer_size(nn.Linear(3, 5)) == (3, 5)
    assert layer_size(Conv1D(5, 3)) == (3, 5)  # outputs first in its constructor


def test_other_layers_are_none() -> None:
    class Conv1DOfTheirOwn(nn.Conv1d):
        weight: nn.Parameter

    for layer in (nn.Embedding(3, 5), nn.LayerNorm(3), Conv1DOfTheirOwn(3, 5, 1), nn.Identity()):
        assert layer_size(layer) is None


def test_the_size_is_what_the_layer_computes() -> None:
    for layer in (nn.Linear(3, 5), Conv1D(5, 3)):
        size = layer_size(layer)
        assert size is not None
        assert layer(torch.ones(2, size[0])).shape == (2, size[1])
