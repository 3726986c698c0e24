"""Softmax token choice: what its two losses are taken over (the rest is in test_vision_moe)."""

from __future__ import annotations

import pytest
import torch

from crossroads.moe.routers.softmax_tc import SoftmaxTokenChoice
from tests.moe.routers.inputs import value, view


def test_its_losses_see_sequences_that_lean_to_different_experts() -> None:
    router = SoftmaxTokenChoice(2, 2, noise_std=0.1)
    router.gate.weight.data.copy_(torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log())
    x_BTD = torch.eye(2).repeat_interleave(5, 0).reshape(2, 5, 2)  # probabilities 0.9 and 0.1
    mask_BT = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    aux = router.decide(view(x_BTD, mask_BT=mask_BT, training=True)).aux
    # Every sequence sends 0.9 to one expert; all tokens together would nearly balance.
    assert value(aux["importance"]) == pytest.approx(((0.9 - 0.5) / 0.5) ** 2)
    assert value(aux["load"]) == pytest.approx(1)
    level = router.decide(view(x_BTD.flatten(0, 1)[None], training=True)).aux
    assert value(level["importance"]) == pytest.approx(0, abs=1e-6)
    assert value(level["load"]) < 0.1
