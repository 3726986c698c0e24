"""Training through Hugging Face Accelerate is training: the same numbers, the same files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

accelerate = pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402

from crossroads.core.errors import InputError, UsageError  # noqa: E402
from crossroads.moe.hardware import Hardware  # noqa: E402
from crossroads.moe.training import train  # noqa: E402
from tests.moe.test_training import CONFIG, SPEC, Copy, weights  # noqa: E402


@pytest.fixture(autouse=True)
def _fresh_state() -> None:
    """Accelerate keeps the first accelerator's settings for the process."""
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    GradientState._reset_state()


def test_an_accelerator_trains_the_same_model(tmp_path: Path) -> None:
    config = replace(CONFIG, micro_batches=2, checkpoint_every=2)
    plain = train(Copy(), SPEC, config)
    through = train(
        Copy(), SPEC, config, out=tmp_path, accelerator=accelerate.Accelerator(cpu=True)
    )
    for one, other in zip(weights(plain.model), weights(through.model), strict=True):
        assert torch.equal(one, other)
    assert plain.figures == through.figures
    again = train(Copy(), SPEC, config, out=tmp_path)  # its checkpoint is anybody's
    assert again.figures == plain.figures


def test_its_precision_takes_the_place_of_the_configurations(tmp_path: Path) -> None:
    half = train(Copy(), SPEC, replace(CONFIG, dtype="bfloat16"))
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    through = train(Copy(), SPEC, CONFIG, out=tmp_path, accelerator=accelerator)
    assert through.figures == half.figures
    assert through.figures != train(Copy(), SPEC, CONFIG).figures
    with pytest.raises(InputError, match="another configuration"):
        train(Copy(), SPEC, CONFIG, out=tmp_path)


def test_what_the_trainer_does_itself_is_refused() -> None:
    with pytest.raises(UsageError, match="dtype: bfloat16 beside an accelerator"):
        Hardware("bfloat16", accelerate.Accelerator(cpu=True))
    accumulating = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    with pytest.raises(UsageError, match="gradient_accumulation_steps: expected 1"):
        Hardware("float32", accumulating)
    accumulating.state._mixed_precision = "fp16"
    with pytest.raises(UsageError, match="mixed_precision: expected one of"):
        Hardware("float32", accumulating)
