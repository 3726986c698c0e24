"""Where and in which precision a run computes: torch's own way, or that of Hugging Face Accelerate.

    accelerate launch --cpu --num_processes 2 script.py

where the script hands ``train`` an ``accelerate.Accelerator()``. Its processes share the
micro-batches out (``crossroads.moe.ranks``), its ``mixed_precision`` takes the place of the
configuration's ``dtype``, and its device holds model and batches in training. Beds judge on the
CPU. Nothing is wrapped: the model stays what the bed built, and checkpoints are those of any run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.core.errors import UsageError

PRECISIONS = ("no", "bf16")


@dataclass(frozen=True, slots=True)
class Hardware:
    """The device and precision of a run; ``accelerator`` None is the CPU with ``dtype``.

    Raises UsageError for an accelerator whose settings are the trainer's own work.
    """

    dtype: str
    accelerator: Any = None

    def __post_init__(self) -> None:
        if self.accelerator is None:
            return
        if self.dtype != "float32":
            raise UsageError(
                f"dtype: {self.dtype} beside an accelerator; give it mixed_precision instead"
            )
        if self.accelerator.mixed_precision not in PRECISIONS:
            raise UsageError(
                f"mixed_precision: expected one of {PRECISIONS}, got "
                f"{self.accelerator.mixed_precision!r}, which needs losses scaled; take bf16"
            )
        if self.accelerator.gradient_accumulation_steps != 1:
            raise UsageError(
                "gradient_accumulation_steps: expected 1; set micro_batches of the run instead"
            )

    @property
    def precision(self) -> str:
        """What tells runs of different precision apart."""
        if self.accelerator is None:
            return self.dtype
        return {"no": "float32", "bf16": "bfloat16"}[self.accelerator.mixed_precision]

    @property
    def device(self) -> torch.device:
        if self.accelerator is None:
            return torch.device("cpu")
        device: torch.device = self.accelerator.device
        return device

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which losses are computed."""
        if self.accelerator is not None:
            context: AbstractContextManager[Any] = self.accelerator.autocast()
            return context
        return torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16")

    def sent(self, batch: Any) -> Any:
        """Return a batch whose tensors are on the device."""
        if self.device.type == "cpu":
            return batch
        from accelerate.utils import send_to_device  # type: ignore[import-untyped]

        return send_to_device(batch, self.device)

    def backward(self, loss: Tensor) -> None:
        if self.accelerator is None:
            loss.backward()
        else:
            self.accelerator.backward(loss)

    @contextmanager
    def judging(self, model: nn.Module) -> Iterator[None]:
        """Hold the model on the CPU inside."""
        model.to("cpu")
        try:
            yield
        finally:
            model.to(self.device)
