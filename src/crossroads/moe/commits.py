"""State of routers that advances once an optimiser step, whatever the step was made of."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from crossroads.core.routed import ModelOutput, routed_layers
from crossroads.moe.ranks import Ranks


class Commits:
    """State changes of one optimiser step, summed over its micro-batches.

    Layers that share their routers are one: such a router advances once a step too.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers: dict[int, Any] = {m.layer: m for m in routed_layers(model)}
        owner: dict[tuple[int, ...], int] = {}
        self.owner = {
            number: owner.setdefault(tuple(map(id, layer.routers)), number)
            for number, layer in self.layers.items()
        }
        self.stats: dict[int, dict[str, Tensor]] = {}
        self.new_state: dict[int, dict[str, Tensor]] = {}

    def add(self, output: ModelOutput) -> None:
        for record in output.records:
            owner = self.owner[record.layer]
            total = self.stats.setdefault(owner, {})
            for name, value in self.layers[record.layer].stats(record.decisions).items():
                total[name] = total[name] + value if name in total else value
            self.new_state.setdefault(owner, {}).update(record.new_state)

    def apply(self, ranks: Ranks) -> None:
        """Advance the routers by the counts of all processes."""
        new_state = ranks.latest(self.new_state)
        for layer, stats in ranks.summed(self.stats).items():
            self.layers[layer].commit(stats, new_state.get(layer, {}))
