from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from crossroads.core.errors import InputError
from crossroads.prompts.preferences.lora import lora_parameters
from crossroads.prompts.preferences.training import TrainingSettings, draw_batch, train
from tests.prompts.preferences.tiny import Characters, tiny_llama

PROMPTS = {
    "virology": ["virus?\nA. a\nB. b\nAnswer:", "measles?\nAnswer:"],
    "marketing": ["brand?\nA. c\nB. d\nAnswer:"],
    "anatomy": ["bones?\nA. e\nB. f\nAnswer:"],
    "prehistory": ["fossils?\nA. g\nB. h\nAnswer:"],
}
SETTINGS = TrainingSettings(
    steps=4, batch=2, rank=2, alpha=4.0, first_layer=0, warmup=1, checkpoint_every=2
)


def adapter(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for _, parameter in lora_parameters(model)]


def test_a_run_that_stopped_ends_like_one_that_did_not(tmp_path: Path) -> None:
    whole = tiny_llama()
    losses = train(whole, Characters(), PROMPTS, SETTINGS)
    path = tmp_path / "run.npz"

    def stop(step: int, loss: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_llama(), Characters(), PROMPTS, SETTINGS, checkpoint=path, on_step=stop)
    resumed = tiny_llama()
    rest = train(resumed, Characters(), PROMPTS, SETTINGS, checkpoint=path)
    assert rest == losses[2:]
    assert all(map(torch.equal, adapter(whole), adapter(resumed)))


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    train(tiny_llama(), Characters(), PROMPTS, SETTINGS, checkpoint=path)
    with pytest.raises(InputError, match="written under other settings"):
        train(tiny_llama(), Characters(), PROMPTS, replace(SETTINGS, seed=1), checkpoint=path)


def test_only_answers_are_predicted() -> None:
    ids_BT, labels_BT = draw_batch(Characters(), PROMPTS, SETTINGS, 0)
    for ids_T, labels_T in zip(ids_BT, labels_BT, strict=True):
        asked = labels_T != -100
        assert torch.equal(ids_T[asked], labels_T[asked])
        answer = "".join(map(chr, labels_T[asked].tolist()))
        assert answer.endswith('"}')
        first = int(asked.nonzero()[0])
        assert "".join(map(chr, ids_T[:first].tolist())).endswith('{"route":"')


def test_batches_do_not_depend_on_what_was_drawn_before() -> None:
    again = [draw_batch(Characters(), PROMPTS, SETTINGS, step)[0] for step in (3, 1, 3)]
    assert torch.equal(again[0], again[2])
    assert again[0].shape != again[1].shape or not torch.equal(again[0], again[1])


def test_the_loss_falls_on_a_toy() -> None:
    settings = replace(SETTINGS, steps=40, batch=4, rank=8, alpha=16.0, learning_rate=0.02)
    losses = train(tiny_llama(), Characters(), PROMPTS, settings)
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
