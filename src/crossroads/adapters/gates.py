"""PHATGOOSE's second step: a gate for a finished expert, trained on the expert's own data.

The model and the expert are frozen; only one vector a layer learns, by the same loss on the same
tokens as the expert's factors. Source: Muqeeth et al. 2024, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from crossroads.adapters.bank import AdapterBank, Expert
from crossroads.adapters.routers.phatgoose import GateTraining
from crossroads.adapters.texts import TextBatch
from crossroads.adapters.training import Group, TrainSettings, train_routed
from crossroads.core.progress import Progress


def train_gate(
    model: nn.Module,
    expert: Expert,
    batch_of: Callable[[int], TextBatch],
    settings: TrainSettings,
    *,
    lr: float = 1e-2,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: Progress | None = None,
) -> Expert:
    """Return the expert with its gates: artifact "gate", (I,) for every layer it adapts.

    Raises what ``training.train`` raises.

    Parameters
    ----------
    model : frozen causal language model; it is given back as it was
    batch_of : step -> batch of the expert's training data, the one its factors were trained on
    settings : at least 20 steps at the rate ``lr``; every expert of a bank the same number, since
        a gate that is trained longer is larger in spread and its scores keep more of their size
    checkpoint, identity, progress : of ``training.train``
    """
    router = GateTraining()
    train_routed(
        model,
        AdapterBank([replace(expert, artifacts={})]),
        router,
        batch_of,
        settings,
        groups=lambda: [Group(parameters=[*router.parameters()], lr=lr)],
        checkpoint=checkpoint,
        identity=identity,
        progress=progress,
    )
    return replace(expert, artifacts={**expert.artifacts, "gate": router.gates()})
