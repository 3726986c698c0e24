"""State of routers that advances once an optimiser step, whatever the step was made of.

Routers of ``commit_every="forward"`` advance after each micro-batch in its place.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from crossroads.core.errors import UsageError
from crossroads.core.routed import ModelOutput, routed_layers
from crossroads.moe.ranks import Ranks


class Commits:
    """State changes of one optimiser step, summed over its micro-batches.

    Layers that share their routers are one: such a router advances once a step too. ``add`` a
    micro-batch when its backward pass is over: what that computes again must find the state that
    the forward pass found. Raises UsageError for several processes where a router advances at each
    micro-batch: theirs run at the same time.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self.ranks = ranks
        self.layers: dict[int, Any] = {m.layer: m for m in routed_layers(model)}
        owner: dict[tuple[int, ...], int] = {}
        self.owner = {
            number: owner.setdefault(tuple(map(id, layer.routers)), number)
            for number, layer in self.layers.items()
        }
        self.at_once = {
            owner
            for owner in self.owner.values()
            if any(router.commit_every == "forward" for router in self.layers[owner].routers)
        }
        if self.at_once and ranks.world > 1:
            raise UsageError(
                f"router of layer {min(self.at_once)}: commit_every='forward' wants micro-batches "
                "one after the other; train in one process"
            )
        self.stats: dict[int, dict[str, Tensor]] = {}
        self.new_state: dict[int, dict[str, Tensor]] = {}

    def add(self, output: ModelOutput) -> None:
        for record in output.records:
            owner = self.owner[record.layer]
            total = self.stats.setdefault(owner, {})
            for name, value in self.layers[record.layer].stats(record.decisions).items():
                total[name] = total[name] + value if name in total else value
            self.new_state.setdefault(owner, {}).update(record.new_state)
        for owner in self.at_once:
            self.layers[owner].commit(self.stats.pop(owner, {}), self.new_state.pop(owner, {}))

    def apply(self) -> None:
        """Advance the routers by the counts of all processes."""
        new_state = self.ranks.latest(self.new_state)
        for layer, stats in self.ranks.summed(self.stats).items():
            self.layers[layer].commit(stats, new_state.get(layer, {}))
