"""Trainable linear gates: one matrix (E, I) for every decision of a router.

Axes: E experts, I inputs of the layer that decides, B sequences, T positions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call
from crossroads.adapters.scopes import Scope, owner

_LOG = logging.getLogger(__name__)
Init = Callable[[Tensor], object]


def real_tokens(call: Call, scored: Tensor) -> Tensor:
    """Return which tokens of a decision with these scores (B, T, ..) are real, bool (B T,)."""
    if call.mask_BT is None:
        return torch.ones(scored.shape[:2].numel(), dtype=torch.bool)
    return call.mask_BT.flatten()


class LinearGates(nn.Module):
    """Gates without bias, kept by the key of ``scopes.owner``.

    ``follow`` makes them for a bank. What was learnt of experts that stay is kept, wherever they
    stand now, so a router that was trained survives an insertion into another model; experts that
    come later start as drawn.
    """

    def __init__(self, scope: Scope, init: Init) -> None:
        super().__init__()
        self.scope: Scope = scope
        self._init = init
        self._places: dict[str, int] = {}
        self._known: dict[str, str] = {}  # the bank's keys when it was prepared for
        self.weights = nn.ParameterList()

    def follow(self, bank: AdapterBank, *, seed: int = 0) -> None:
        """Make a gate of shape (E, I) for the first layer of every decision of the bank."""
        sizes: dict[str, tuple[int, int]] = {}
        for layer, module in bank.layers.items():
            sizes.setdefault(owner(self.scope, layer), (module.n_experts, module.inputs))
        kept = {key: self.weights[place] for key, place in self._places.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = [self._gate(kept.get(key), size, bank) for key, size in sizes.items()]
        if kept and None in bank.places_in(self._known):
            _LOG.warning("gates: experts are new, and know nothing yet; train the router again")
        self._known = bank.keys_by_name
        self._places = {key: place for place, key in enumerate(sizes)}
        self.weights = nn.ParameterList(made)

    def scores(self, module: str, x_BTI: Tensor) -> Tensor:
        """Return float32 scores (B, T, E) of a layer's input."""
        gate_EI = self.weights[self._places[owner(self.scope, module)]]
        return x_BTI.float() @ gate_EI.float().T

    def _gate(
        self, kept: nn.Parameter | None, size: tuple[int, int], bank: AdapterBank
    ) -> nn.Parameter:
        """Return a gate with the rows of experts that were there before."""
        if kept is not None and tuple(kept.shape) == size and bank.is_as_in(self._known):
            return kept
        fresh_EI = torch.empty(size)
        self._init(fresh_EI)
        if kept is None or kept.shape[1] != size[1]:
            return nn.Parameter(fresh_EI, requires_grad=False)
        carried_EI = bank.carried(self._known, kept.detach(), fresh_EI)
        return nn.Parameter(carried_EI, requires_grad=kept.requires_grad)
