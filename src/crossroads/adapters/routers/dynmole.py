"""DynMoLE: as many LoRA experts for a token as its router is unsure.

p = softmax(G x). The experts whose cumulative probability, in descending order, stays within
``top_p`` are kept, and always the first ``keep``; where the normalised Tsallis entropy of p exceeds
``broadcast`` all experts are. Weights are p, not renormalised. Source: DynMoLE (2025).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call, RouteInput, Router, Routing
from crossroads.adapters.linear_gates import LinearGates
from crossroads.core.gating import softmax, tsallis_entropy
from crossroads.core.losses import masked_mean
from crossroads.core.routed import AuxTerm

_EPS = 1e-5  # what the published code adds to every probability


class DynMoLE(Router):
    """Top-p with a floor, and every expert where the router is unsure.

    Parameters
    ----------
    top_p, keep, broadcast : the selection; ``broadcast >= 1`` never broadcasts
    q : order of the Tsallis entropy
    entropy, balance : coefficients of the losses: mean entropy, and E * sum of kept mass f and mean
        probability P over the tokens of all layers together
    eps_mode : "clamp" bounds probabilities below at 1e-9; "add" is the published code, whose
        entropy then is off where probabilities no longer add to 1
    seed : of the gates' start, Kaiming uniform with a = sqrt(5)
    """

    name: ClassVar[str] = "dynmole"
    survey_row: ClassVar[str | None] = "DynMoLE"

    def __init__(
        self,
        *,
        top_p: float = 0.75,
        keep: int = 2,
        broadcast: float = 0.9,
        q: float = 1.1,
        entropy: float = 0.01,
        balance: float = 0.001,
        eps_mode: str = "clamp",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.top_p, self.keep, self.broadcast, self.q = top_p, keep, broadcast, q
        self.entropy, self.balance, self.eps_mode, self.seed = entropy, balance, eps_mode, seed
        self.gates = LinearGates(
            "module", lambda gate: nn.init.kaiming_uniform_(gate, math.sqrt(5))
        )

    def prepare(self, bank: AdapterBank) -> None:
        self.gates.follow(bank, seed=self.seed)

    def route(self, given: RouteInput) -> Routing:
        alive_E = given.bank.alive_E
        logits_BTE = self.gates.scores(given.module, given.x_BTI).masked_fill(~alive_E, -torch.inf)
        probs_BTE = softmax(logits_BTE)
        kept_BTE = self.kept(probs_BTE, int(alive_E.sum()))
        return Routing(
            weights=(probs_BTE * kept_BTE).unsqueeze(2),
            normalised=False,
            logits=logits_BTE.unsqueeze(2),
        )

    def kept(self, probs_BTE: Tensor, n_alive: int) -> Tensor:
        """Return which experts a token uses, bool like ``probs``; carries no gradient."""
        probs_BTE = probs_BTE.detach()
        order = probs_BTE.argsort(dim=-1, descending=True, stable=True)
        within = probs_BTE.gather(-1, order).cumsum(-1) <= self.top_p
        within[..., : self.keep] = True
        kept = torch.zeros_like(within).scatter(-1, order, within)
        if self.broadcast < 1:  # above that nobody is, whatever the rounding of equal shares
            kept |= (self.uncertainty(probs_BTE, n_alive) > self.broadcast).unsqueeze(-1)
        return kept & (probs_BTE > 0)

    def uncertainty(self, probs: Tensor, n_alive: int) -> Tensor:
        """Return the entropy of the last axis, 0 for one expert and 1 for all alike."""
        told = probs + _EPS if self.eps_mode == "add" else probs
        return tsallis_entropy(told, self.q, n=n_alive)

    def losses(self, decided: Mapping[str, Routing], call: Call) -> Mapping[str, AuxTerm]:
        """Return entropy and balance over the real tokens of all layers together."""
        if not call.training or not decided:
            return {}
        probs_NE, mass_NE, mask_N = (torch.cat(parts) for parts in self._tokens(decided, call))
        n_alive = probs_NE.shape[-1]
        unsure = masked_mean(self.uncertainty(probs_NE, n_alive), mask_N)
        shares = masked_mean(mass_NE, mask_N) * masked_mean(probs_NE, mask_N)
        return {
            "entropy": AuxTerm(unsure, self.entropy),
            "balance": AuxTerm(n_alive * shares.sum(), self.balance),
        }

    def settings(self) -> Mapping[str, Any]:
        names = ("top_p", "keep", "broadcast", "q", "entropy", "balance", "eps_mode", "seed")
        return {name: getattr(self, name) for name in names}

    @staticmethod
    def _tokens(decided: Mapping[str, Routing], call: Call) -> tuple[list[Tensor], ...]:
        probs, mass, masks = [], [], []
        for routing in decided.values():
            assert routing.logits is not None
            probs.append(softmax(routing.logits).flatten(0, 2))
            mass.append(routing.weights.flatten(0, 2))
            real = call.mask_BT
            tokens = routing.logits.shape[:2]
            masks.append((torch.ones(tokens, dtype=torch.bool) if real is None else real).flatten())
        return probs, mass, masks
