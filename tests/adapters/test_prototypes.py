"""Prototypes against the singular vectors of the whole product, and exact subtraction."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossroads.adapters.bank import Expert, LoRA, ModuleBank
from crossroads.adapters.prototypes import prototypes_EI, without_general
from crossroads.core.errors import InputError


def lora(seed: int, rank: int, inputs: int = 12, outputs: int = 7, scale: float = 2.0) -> LoRA:
    random = torch.Generator().manual_seed(seed)
    return LoRA(
        a_RI=torch.randn(rank, inputs, generator=random),
        b_OR=torch.randn(outputs, rank, generator=random),
        scale=scale,
    )


def strength(found: LoRA, direction_I: Tensor) -> Tensor:
    return (found.delta_OI() @ direction_I).norm()


@given(seed=st.integers(0, 10_000), ranks=st.lists(st.integers(1, 9), min_size=1, max_size=4))
@settings(max_examples=40)
def test_the_prototype_is_the_direction_of_the_largest_gain(seed: int, ranks: list[int]) -> None:
    experts = [lora(seed + n, rank) for n, rank in enumerate(ranks)]
    found_EI = prototypes_EI(ModuleBank("layer", experts))
    for expert, found_I in zip(experts, found_EI, strict=True):
        torch.testing.assert_close(found_I.norm(), torch.tensor(1.0))
        largest = torch.linalg.matrix_norm(expert.delta_OI(), ord=2)
        torch.testing.assert_close(strength(expert, found_I), largest, rtol=1e-4, atol=1e-4)
        assert found_I[found_I.abs().argmax()] > 0


def test_scales_and_rotations_of_the_ranks_do_not_matter() -> None:
    one = lora(0, 3)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    turned = LoRA(a_RI=turn @ one.a_RI, b_OR=one.b_OR @ turn.T, scale=7.0)
    first, second = prototypes_EI(ModuleBank("layer", [one, turned]))
    torch.testing.assert_close(first, second)


def test_experts_without_effect_or_dead_have_no_direction() -> None:
    idle = LoRA(a_RI=torch.randn(2, 12), b_OR=torch.zeros(7, 2), scale=1.0)
    found_EI = prototypes_EI(ModuleBank("layer", [idle, None, lora(0, 2)]))
    assert (found_EI[:2] == 0).all()
    assert found_EI[2].any()


def test_subtracting_the_mean_of_general_adapters_is_exact() -> None:
    mine = Expert(name="mine", modules={"both": lora(0, 2), "alone": lora(1, 3)})
    general = [
        Expert(name="g0", modules={"both": lora(2, 1, scale=0.5)}),
        Expert(name="g1", modules={"both": lora(3, 4)}),
        Expert(name="g2", modules={"other": lora(4, 1)}),
    ]
    found = without_general(mine, general).modules
    wanted = mine.modules["both"].delta_OI() - (
        general[0].modules["both"].delta_OI() + general[1].modules["both"].delta_OI()
    ) / len(general)
    torch.testing.assert_close(found["both"].delta_OI(), wanted)
    torch.testing.assert_close(found["alone"].delta_OI(), mine.modules["alone"].delta_OI())
    assert found.keys() == mine.modules.keys()
    with pytest.raises(InputError, match="none to subtract"):
        without_general(mine, [])
