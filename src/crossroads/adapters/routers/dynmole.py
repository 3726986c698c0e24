"""DynMoLE: as many LoRA experts for a token as its router is unsure.

p = softmax(G x). The experts whose cumulative probability, in descending order, stays within
``top_p`` are kept, and always the first ``keep``; where the normalised Tsallis entropy of p exceeds
``broadcast`` all experts are. Weights are p, not renormalised. Source: DynMoLE (2025).

Experts that do not adapt a layer have p = 0 there, and the entropy of the layer, in the selection,
the loss and ``by_layer``, is over its value for the others alike: it is 1 where those are alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call, RouteInput, Router, Routing
from crossroads.adapters.linear_gates import LinearGates, real_tokens
from crossroads.adapters.survey.schema import Cells
from crossroads.core.errors import UsageError
from crossroads.core.gating import renyi_entropy, softmax, tsallis_entropy
from crossroads.core.losses import masked_mean
from crossroads.core.routed import AuxTerm

if TYPE_CHECKING:
    from crossroads.adapters.lessons import Lesson

_ENTROPIES = {"tsallis": tsallis_entropy, "renyi": renyi_entropy}
_RATE = 1e-2  # of the gates
_EPS_MODES = ("clamp", "add")
_EPS = 1e-5  # what the published code adds to every probability


class DynMoLE(Router):
    """Top-p with a floor, and every expert where the router is unsure.

    Parameters
    ----------
    top_p, keep, broadcast : the selection; ``broadcast >= 1`` never broadcasts
    q : order of the entropy, above 0 and at most 2; 1 is Shannon's
    kind : of the entropy, "tsallis" or "renyi"
    entropy, balance : coefficients of the losses: mean entropy, and E * sum of kept mass f and mean
        probability P over the tokens of all layers together; E counts all experts of the bank, and
        those of the layer alone in ``by_layer``
    eps_mode : "clamp" bounds probabilities below at 1e-9; "add" is the published code, whose
        entropy then is off where probabilities no longer add to 1
    seed : of the gates' start, Kaiming uniform with a = sqrt(5)
    """

    name: ClassVar[str] = "dynmole"
    survey_row: ClassVar[str | None] = "DynMoLE"
    learns: ClassVar[int] = 40
    cells: ClassVar[Cells | None] = Cells(
        expert_training="Custom",
        expert_data="Shared",
        routing_dataset="Expert",
        input_granularity="Step",
        depth_granularity="Module",
        expert_selection="Sparse",
        expert_aggregation="Output",
        generalization="In-Distribution",
        user_dataset="Full",
    )

    def __init__(
        self,
        *,
        top_p: float = 0.75,
        keep: int = 2,
        broadcast: float = 0.9,
        q: float = 1.1,
        kind: str = "tsallis",
        entropy: float = 0.01,
        balance: float = 0.001,
        eps_mode: str = "clamp",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if kind not in _ENTROPIES or eps_mode not in _EPS_MODES:
            raise UsageError(
                f"router dynmole: kind is {' or '.join(_ENTROPIES)} and eps_mode "
                f"{' or '.join(_EPS_MODES)}; got {kind!r} and {eps_mode!r}"
            )
        if not (0 < q <= 2 and keep >= 1 and 0 <= top_p <= 1):
            raise UsageError(
                "router dynmole: expected 0 < q <= 2, keep of at least 1 and top_p in [0, 1]; got "
                f"q={q}, keep={keep}, top_p={top_p}"
            )
        if math.isnan(broadcast) or not (math.isfinite(entropy) and math.isfinite(balance)):
            raise UsageError(
                "router dynmole: expected a number for broadcast and finite coefficients; got "
                f"broadcast={broadcast}, entropy={entropy}, balance={balance}"
            )
        self.top_p, self.keep, self.broadcast, self.q = top_p, keep, broadcast, q
        self.kind = kind
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
        within |= self.top_p >= 1  # all of them, though sums of shares are rounded above 1
        within[..., : self.keep] = True
        kept = torch.zeros_like(within).scatter(-1, order, within)
        if self.broadcast < 1:  # above that nobody is, whatever the rounding of equal shares
            kept |= (self.uncertainty(probs_BTE, n_alive) > self.broadcast).unsqueeze(-1)
        return kept & (probs_BTE > 0)

    def uncertainty(self, probs: Tensor, n_alive: int) -> Tensor:
        """Return the entropy of the last axis, 0 for one expert and 1 for all alike."""
        told = probs + _EPS if self.eps_mode == "add" else probs
        return _ENTROPIES[self.kind](told, self.q, n=n_alive)

    def losses(self, decided: Mapping[str, Routing], call: Call) -> Mapping[str, AuxTerm]:
        """Return entropy and balance over the real tokens of all layers together."""
        if not call.training or not decided:
            return {}
        parts = zip(*(self._tokens(routing, call) for routing in decided.values()), strict=True)
        unsure_N, probs_NE, mass_NE, mask_N = (torch.cat(part) for part in parts)
        balance = _balance(probs_NE, mass_NE, mask_N, probs_NE.shape[-1])
        return {
            "entropy": AuxTerm(masked_mean(unsure_N, mask_N), self.entropy),
            "balance": AuxTerm(balance, self.balance),
        }

    @torch.no_grad()
    def by_layer(self, decided: Mapping[str, Routing], call: Call) -> dict[str, dict[str, float]]:
        """Return mean entropy, balance and the share of tokens with every expert, by layer.

        The balance of all layers together hides layers that lean to different experts.
        """
        found = {}
        for layer, routing in decided.items():
            unsure_N, probs_NE, mass_NE, mask_N = self._tokens(routing, call)
            balance = _balance(probs_NE, mass_NE, mask_N, _n_alive(routing))
            has_all_N = (mass_NE > 0).sum(-1) == (probs_NE > 0).sum(-1)
            found[layer] = {
                "entropy": float(masked_mean(unsure_N, mask_N)),
                "balance": float(balance),
                "broadcast": float(masked_mean(has_all_N.float(), mask_N)),
            }
        return found

    def learn(self, lesson: Lesson) -> AdapterBank:
        """Train the gates over finished experts; the paper trains experts along (``joint``)."""
        return lesson.train_gates(self, lr=_RATE)

    def settings(self) -> Mapping[str, Any]:
        names = (
            "top_p",
            "keep",
            "broadcast",
            "q",
            "kind",
            "entropy",
            "balance",
            "eps_mode",
            "seed",
        )
        return {name: getattr(self, name) for name in names}

    def _tokens(self, routing: Routing, call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a decision's entropies (N,), probabilities and kept mass (N, E), real tokens."""
        assert routing.logits is not None
        probs_NE = softmax(routing.logits).flatten(0, 2)
        unsure_N = self.uncertainty(probs_NE, _n_alive(routing))
        return unsure_N, probs_NE, routing.weights.flatten(0, 2), real_tokens(call, routing.logits)


def _n_alive(routing: Routing) -> int:
    """Return how many experts adapt the layer of a decision: the others' logits are -inf."""
    assert routing.logits is not None
    return int((~torch.isneginf(routing.logits).flatten(0, 2).any(0)).sum())


def _balance(probs_NE: Tensor, mass_NE: Tensor, mask_N: Tensor, n_experts: int) -> Tensor:
    return n_experts * (masked_mean(mass_NE, mask_N) * masked_mean(probs_NE, mask_N)).sum()
