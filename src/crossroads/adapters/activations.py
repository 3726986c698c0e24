"""What an expert's own texts look like at every layer: the mean input, artifact "activation".

One forward pass over at most 1,000 examples with the expert active; no gradient, no training.
Source: the baseline "average activation" of Learning to Route Among Specialized Experts
(Muqeeth et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank, Expert
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import RouteInput, Router, Routing
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.texts import TextBatch
from crossroads.core.errors import InputError

MOST_EXAMPLES = 1000


class _MeanInput(Router):
    """The one expert of the bank with weight 1; adds up the inputs of real tokens."""

    name: ClassVar[str] = "mean-input"

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def route(self, given: RouteInput) -> Routing:
        x_NI, mask_BT = given.x_BTI.flatten(0, 1).float(), given.call.mask_BT
        if mask_BT is None or mask_BT.numel() != len(x_NI):
            raise InputError(
                f"activations of {given.module}: its input {tuple(given.x_BTI.shape[:2])} does "
                "not fit the mask of the batch; only decoders and encoders alone are read"
            )
        sum_I = (mask_BT.flatten().float() @ x_NI).double()  # over many batches: sums get large
        self._sums[given.module] = self._sums.get(given.module, torch.zeros_like(sum_I)) + sum_I
        self._counts[given.module] = self._counts.get(given.module, 0) + int(mask_BT.sum())
        return Routing(weights=sum_I.new_ones(1, 1, 1, 1).float())

    def means(self) -> dict[str, Tensor]:
        return {layer: (sum_I / self._counts[layer]).float() for layer, sum_I in self._sums.items()}


def record_activation(model: nn.Module, expert: Expert, batches: Iterable[TextBatch]) -> Expert:
    """Return the expert with artifact "activation": mean input (I,) of each layer it adapts.

    ``batches`` are of the expert's training texts; padding does not count, and neither does what
    follows the first 1,000 sequences. ``model`` is given back as it was.

    Raises InputError where there are no batches.
    """
    recorder = _MeanInput()
    routed = RoutedModel(model, AdapterBank([replace(expert, artifacts={})]), recorder)
    try:
        left = MOST_EXAMPLES
        for batch in batches:
            ids_BT, mask_BT = batch.ids_BT[:left], batch.mask_BT[:left]
            with torch.no_grad(), calling(mask=mask_BT):
                getattr(model, "base_model", model)(
                    input_ids=ids_BT, attention_mask=mask_BT.long(), use_cache=False
                )
            left -= len(ids_BT)
            if left <= 0:
                break
    finally:
        routed.unwrap()
    if left == MOST_EXAMPLES:
        raise InputError(f"activations of expert {expert.name!r}: there are no texts; give some")
    return replace(expert, artifacts={**expert.artifacts, "activation": recorder.means()})
