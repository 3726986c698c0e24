"""Trainable linear gates: one matrix (E, I) for every decision of a router.

Axes: E experts, I inputs of the layer that decides, B sequences, T positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.scopes import Scope, owner

Init = Callable[[Tensor], object]


class LinearGates(nn.Module):
    """Gates without bias, kept by the key of ``scopes.owner``.

    ``follow`` makes them for a bank. Gates of the same size stay, so a router that was trained
    survives an insertion into another model; of another size they start anew.
    """

    def __init__(self, scope: Scope, init: Init) -> None:
        super().__init__()
        self.scope: Scope = scope
        self._init = init
        self._places: dict[str, int] = {}
        self.weights = nn.ParameterList()

    def follow(self, bank: AdapterBank, *, seed: int = 0) -> None:
        """Make a gate of shape (E, I) for the first layer of every decision of the bank."""
        sizes: dict[str, tuple[int, int]] = {}
        for layer, module in bank.layers.items():
            sizes.setdefault(owner(self.scope, layer), (module.n_experts, module.inputs))
        kept = {key: self.weights[place] for key, place in self._places.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = [self._gate(kept.get(key), size) for key, size in sizes.items()]
        self._places = {key: place for place, key in enumerate(sizes)}
        self.weights = nn.ParameterList(made)

    def scores(self, module: str, x_BTI: Tensor) -> Tensor:
        """Return float32 scores (B, T, E) of a layer's input."""
        gate_EI = self.weights[self._places[owner(self.scope, module)]]
        return x_BTI.float() @ gate_EI.float().T

    def _gate(self, kept: nn.Parameter | None, size: tuple[int, int]) -> nn.Parameter:
        if kept is not None and tuple(kept.shape) == size:
            return kept
        gate = nn.Parameter(torch.empty(size), requires_grad=False)
        with torch.no_grad():
            self._init(gate)
        return gate
