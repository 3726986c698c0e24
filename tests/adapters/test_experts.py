from __future__ import annotations

import pytest
import torch

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.experts import Alone, new_expert, train_expert
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.texts import TextBatch, answer_nll
from crossroads.adapters.training import TrainSettings
from crossroads.core.errors import InputError
from tests.adapters.toys import ids, tiny_gpt2, tiny_llama

TARGETS = ("q_proj", "down_proj")


def _batch(step: int) -> TextBatch:
    """The same sequences at every step: something to learn by heart."""
    ids_BT = ids(4, 6, seed=7)
    is_real = torch.ones_like(ids_BT, dtype=torch.bool)
    return TextBatch(ids_BT=ids_BT, mask_BT=is_real, answer_BT=is_real)


def test_a_new_expert_changes_nothing() -> None:
    model = tiny_llama()
    before = answer_nll(model, _batch(0))
    expert = new_expert(model, "new", targets=TARGETS, rank=2, alpha=4.0)
    routed = RoutedModel(model, AdapterBank([expert]), Alone())
    assert torch.equal(answer_nll(model, _batch(0)), before)
    routed.unwrap()
    assert len(expert.modules) == 4  # two layers of each of two blocks
    assert all(lora.scale == 2.0 for lora in expert.modules.values())


def test_factors_are_drawn_as_peft_draws_them() -> None:
    expert = new_expert(tiny_llama(), "new", targets=TARGETS, rank=64, alpha=1.0, seed=3)
    for lora in expert.modules.values():
        bound = lora.a_RI.shape[1] ** -0.5
        assert lora.a_RI.abs().max() <= bound
        assert lora.a_RI.std() == pytest.approx(bound / 3**0.5, rel=0.1)  # of a uniform draw
        assert not lora.b_OR.any()


def test_training_lowers_the_loss_and_gives_the_model_back() -> None:
    model = tiny_llama(initializer_range=0.3)
    before = answer_nll(model, _batch(0)).mean()
    expert = new_expert(model, "new", targets=TARGETS, rank=2, alpha=4.0)
    settings = TrainSettings(steps=30, warmup=2)
    trained, losses = train_expert(model, expert, _batch, settings, lr=2e-2)
    assert losses[0] == pytest.approx(float(before), abs=1e-5)
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(answer_nll(model, _batch(0)).mean(), before)
    assert not any(lora.b_OR.any() for lora in expert.modules.values())  # not trained in place
    assert all(lora.b_OR.any() for lora in trained.modules.values())


def test_the_linear_layers_of_gpt2_are_adapted_too() -> None:
    model = tiny_gpt2()
    expert = new_expert(model, "new", targets=["c_attn"], rank=2, alpha=4.0)
    assert {m.a_RI.shape[1]: len(m.b_OR) for m in expert.modules.values()} == {16: 48}
    routed = RoutedModel(model, AdapterBank([expert]), Alone())
    assert answer_nll(model, _batch(0)).isfinite().all()
    routed.unwrap()


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="no linear layer is named c_attn"):
        new_expert(tiny_llama(), "new", targets=["c_attn"], rank=2, alpha=4.0)
