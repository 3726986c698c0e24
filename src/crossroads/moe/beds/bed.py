"""What an arena needs of a test bed beyond training on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from crossroads.core.arena import Metric
from crossroads.core.routed import ModelOutput
from crossroads.moe.building import MoESpec
from crossroads.moe.training import Bed, TrainConfig

Preset = Literal["quick", "full"]
Ints = npt.NDArray[np.int64]


class ArenaBed(Bed, Protocol):
    """A test bed that routers are compared on.

    Attributes
    ----------
    metrics : what ``evaluate`` returns; the first one orders a leaderboard
    causal : the backbone is a decoder, so routers that look ahead are left out
    """

    @property
    def causal(self) -> bool: ...

    @property
    def metrics(self) -> Sequence[Metric]: ...

    @property
    def description(self) -> str:
        """One line: data, backbone, sizes."""
        ...

    @property
    def fingerprint(self) -> str:
        """A text that changes when data or backbone do."""
        ...

    def spec(self, router: str) -> MoESpec:
        """Return what stands in the feed-forward places, at the compute of the dense arm."""
        ...

    def config(self, preset: Preset) -> TrainConfig:
        """Return how to train."""
        ...

    def tokens(self, config: TrainConfig) -> int:
        """Return real tokens of one training step (a mean where lengths differ)."""
        ...

    def probe(self, model: nn.Module) -> tuple[ModelOutput, Ints]:
        """Return the model's answer on a fixed held-out batch, and a label per real token."""
        ...


def tensor(values: npt.NDArray[Any]) -> Tensor:
    """Return an array as a tensor that owns its memory."""
    return torch.from_numpy(np.ascontiguousarray(values))
