"""Expert choice: every expert takes the C tokens of a group it wants most.

Loads are equal by construction, without an auxiliary loss; a token is served by 0 to E experts.
A choice needs the whole group (one sequence here), so it leaks the future in a decoder and changes
with whoever else is in the group.

C = round(S * cf / E), half to even, at least 1 and at most S, with S the real tokens of the group:
groups with padding have fewer slots, and the spare ones are empty.

Axes: G = B groups of S = T tokens, E experts, C slots per expert and group.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from crossroads.core import gating, losses
from crossroads.core.routed import AuxTerm
from crossroads.moe.capacity import Capacity
from crossroads.moe.checks import check_coefficients
from crossroads.moe.contract import (
    NOBODY,
    ExpertChoice,
    ExpertKind,
    Router,
    RouterInput,
    RouterOutput,
    RoutingDecision,
)
from crossroads.moe.router import grouped, opened, wanted_experts


class ExpertChoiceRouter(Router):
    """Linear score, softmax over experts, then each expert picks by ``affinity``.

    ``force`` puts the token first in the queue of its expert, ``allow`` keeps it out of the others.

    Parameters
    ----------
    d : width of the tokens
    n_experts : E
    cf : capacity factor: experts a token gets on average
    eval_cf : the same in evaluation; None = cf
    noise_std : Gaussian noise of standard deviation noise_std / E on the logits in training
    z_loss : coefficient of the router z-loss
    kinds : of the experts
    """

    causal_safe: bool = False
    per_token: bool = False
    remedy: str = "let tokens choose: take softmax-tc or switch"
    default_noise: ClassVar[float] = 1.0

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        cf: float = 1.0,
        eval_cf: float | None = None,
        noise_std: float | None = None,
        z_loss: float = 0.0,
        kinds: tuple[ExpertKind, ...] | None = None,
    ) -> None:
        super().__init__(n_experts, kinds)
        self.noise_std = self.default_noise if noise_std is None else noise_std
        check_coefficients(noise_std=self.noise_std, z_loss=z_loss)
        self.d = d
        self.room = Capacity(factor=cf, eval_factor=eval_cf, rounding="round")
        self.z_loss = z_loss
        self.gate = nn.Linear(d, n_experts, bias=False)
        nn.init.normal_(self.gate.weight, std=d**-0.5)

    def affinity(
        self, logits_GSE: Tensor, probs_GSE: Tensor, slots_G: Tensor, inp: RouterInput
    ) -> Tensor:
        """Return what experts rank tokens by, (G, S, E); -inf = never."""
        raise NotImplementedError

    def score(self, inp: RouterInput) -> Tensor:
        """Return clean logits (N, E)."""
        x_ND = gating.at_least_float32(inp.x_ND)
        return nn.functional.linear(x_ND, self.gate.weight.to(x_ND.dtype))

    def noisy(self, clean_NE: Tensor, inp: RouterInput) -> Tensor:
        """Return logits with the noise of a training pass."""
        if not inp.training or not self.noise_std:
            return clean_NE
        noise_NE = inp.noise(tuple(clean_NE.shape), clean_NE)
        return clean_NE + self.noise_std / self.n_experts * noise_NE

    def slots(self, inp: RouterInput) -> Tensor:
        """Return C of every group, int64 (G,)."""
        rooms = [
            min(self.room.slots(real, 1, self.n_experts, training=inp.training), real)
            for real in inp.mask_BT.sum(1).tolist()
        ]
        return torch.tensor(rooms, dtype=torch.int64, device=inp.x_BTD.device)

    def decide(self, inp: RouterInput) -> RouterOutput:
        clean_NE = opened(self.score(inp), inp)
        logits_NE = self.noisy(clean_NE, inp)
        probs_NE = gating.softmax(logits_NE)
        slots_G = self.slots(inp)
        probs_GSE = grouped(probs_NE, inp)
        want_GSE = self.affinity(grouped(logits_NE, inp), probs_GSE, slots_G, inp).detach()
        open_GSE = inp.mask_BT.unsqueeze(-1) & ~torch.isneginf(grouped(logits_NE, inp))
        want_GSE = ahead(want_GSE, inp, self.n_experts).masked_fill(~open_GSE, -torch.inf)
        tok_GEC = fill(want_GSE, slots_G)
        w_GEC = probs_GSE.transpose(1, 2).gather(2, tok_GEC.clamp_min(0))
        w_GEC = torch.where(tok_GEC >= 0, w_GEC, torch.zeros_like(w_GEC))
        batch, length = inp.mask_BT.shape
        decision = RoutingDecision(
            choice=ExpertChoice(tok_GEC=tok_GEC, w_GEC=w_GEC, group_size=length),
            n_experts=self.n_experts,
            shape=(batch, length),
            mask_N=inp.mask_N,
            logits_NE=clean_NE,
            probs_NE=probs_NE,
            stats={"count_E": (tok_GEC >= 0).sum((0, 2)).to(torch.float32)},
        )
        aux: dict[str, AuxTerm] = {}
        if inp.training and self.z_loss:
            aux["z"] = AuxTerm(losses.z_loss(clean_NE, inp.mask_N), self.z_loss)
        return RouterOutput(decision=decision, aux=aux, carry=inp.carry or {})

    @property
    def nominal_active(self) -> float:
        return min(self.room.factor, float(self.n_experts))


def fill(want_GSE: Tensor, slots_G: Tensor) -> Tensor:
    """Return each expert's tokens by descending wish, ties to the earlier token, (G, E, C_max).

    Group g fills its first ``slots_G[g]`` slots; -1 elsewhere, and where the wish is -inf.
    """
    most = int(slots_G.max()) if len(slots_G) else 0
    best_GSE = torch.argsort(want_GSE, dim=1, descending=True, stable=True)[:, :most]
    wish_GCE = want_GSE.gather(1, best_GSE)
    served_GC = torch.arange(most, device=want_GSE.device) < slots_G.unsqueeze(-1)
    taken_GCE = served_GC.unsqueeze(-1) & ~torch.isneginf(wish_GCE)
    return torch.where(taken_GCE, best_GSE, NOBODY).transpose(1, 2).contiguous()


def ahead(want_GSE: Tensor, inp: RouterInput, n_choosing: int) -> Tensor:
    """Return wishes with the pairs of ``force`` first, experts below ``n_choosing`` alone.

    Raises InputError for another shape and for other experts.
    """
    wanted_BT = wanted_experts(inp, n_choosing)
    if wanted_BT is None:
        return want_GSE
    expert_E = torch.arange(want_GSE.shape[-1], device=want_GSE.device)
    return want_GSE.masked_fill(wanted_BT.unsqueeze(-1) == expert_E, torch.inf)
