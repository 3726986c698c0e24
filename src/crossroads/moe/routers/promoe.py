"""ProMoE: tokens of a diffusion transformer go to the expert whose prototype they point at.

Two steps, on tokens h of sequences with or without a condition:

    1. sequences whose condition was dropped (null label) run the unconditional expert, weight 1
    2. the others: s_e = cos(h, p_e), experts = the K largest, weight = score map of s_e
       (identity, sigmoid or softmax), not renormalised, possibly negative

and a contrastive loss in place of balancing draws each prototype to the mean m of its tokens and
away from the means of the others, over the experts V that have tokens:

    L = mean_{i in V} CE(softmax_{j in V}(cos(p_i, m_j) / tau), i)      (0 when |V| < 2)

In the expert-choice form every routed expert takes the k best tokens of an image instead,
k = clip(int(T K / E), 1, T), and the means are taken image by image. Besides, one shared expert
serves every token.

Source: Routing Matters in MoE: Scaling Diffusion Transformers with Explicit Routing Guidance
(2025). The published code knows the null label by a fixed number; here the caller says which
sequences are null.

Axes: B images of T tokens, N = B * T, D width, E experts with the unconditional one last,
R = routed experts, K places, C slots, G groups of S tokens.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from crossroads.core import gating, losses
from crossroads.core.errors import InputError, UsageError
from crossroads.core.routed import AuxTerm
from crossroads.moe.checks import check_coefficients, check_positive
from crossroads.moe.contract import (
    NOBODY,
    ExpertChoice,
    Router,
    RouterInput,
    RouterOutput,
    RoutingDecision,
    TokenChoice,
    Weights,
)
from crossroads.moe.expert_choice import ahead
from crossroads.moe.router import closed, forced, opened, unit

ScoreMap = Literal["identity", "sigmoid", "softmax"]
Choice = Literal["token", "expert"]


class ProMoE(Router):
    """Prototype routing for conditional tokens, an expert of its own for unconditional sequences.

    Reads ``cond["null"]``, bool (B,), True = the condition was dropped; or ``cond["label"]`` when
    ``null_label`` says which label means that.

    ``force`` may name routed experts only.

    Raises UsageError for settings out of range; ``decide`` raises InputError when the condition is
    missing or misshapen, and UsageError for experts that choose in a decoder.

    Parameters
    ----------
    d, n_experts : width of the tokens; all experts of the router, the unconditional one (the last)
        included
    k : experts per conditional token; on average, in the expert-choice form
    uncond : whether there is an unconditional expert; without it every token is routed and no
        condition is read
    null_label : the label that stands for no condition, where ``cond["null"]`` is not given
    score : what turns a cosine into a weight
    choice : ``token`` (rectified flow) or ``expert`` (DDPM); experts that choose see all tokens of
        a sequence, so that form is not causal
    rcl, tau : coefficient and temperature of the contrastive loss
    balance : coefficient of a Switch balance loss on softmax_e(s); the paper has none
    """

    name = "promoe"
    needs = frozenset({"cond:null"})
    shared_experts = 1

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        k: int = 1,
        uncond: bool = True,
        null_label: int | None = None,
        score: ScoreMap = "identity",
        choice: Choice = "token",
        rcl: float = 1.0,
        tau: float = 0.07,
        balance: float = 0.0,
    ) -> None:
        super().__init__(n_experts)
        self.n_routed = n_experts - uncond
        if self.n_routed < 1:
            raise UsageError(
                "n_experts: router 'promoe' needs at least 2 experts, the last one for sequences "
                f"without a condition, got {n_experts}; give more, or set uncond=False"
            )
        if not 1 <= k <= self.n_routed:
            raise UsageError(f"k: expected 1 to {self.n_routed} (the routed experts), got {k}")
        if score not in get_args(ScoreMap) or choice not in get_args(Choice):
            raise UsageError(
                f"score and choice: expected one of {get_args(ScoreMap)} and of "
                f"{get_args(Choice)}, got {score!r} and {choice!r}"
            )
        check_positive(tau=tau)
        check_coefficients(rcl=rcl, balance=balance)
        self.d = d
        self.k = k
        self.uncond = uncond
        self.null_label = null_label
        self.score_map: ScoreMap = score
        self.choice: Choice = choice
        self.rcl = rcl
        self.tau = tau
        self.balance = balance
        self.process_group: Any = None  # set where counts must be summed over ranks
        self.prototypes = nn.Parameter(torch.randn(self.n_routed, d) * 0.02)
        if not uncond:
            self.needs = frozenset()
        elif null_label is not None:
            self.needs = frozenset({"cond:label"})
        self.causal_safe = self.per_token = choice == "token"
        if choice == "expert":
            self.remedy = "set choice to 'token'"

    # ------------------------------------------------------------------ scores

    def null_rows(self, inp: RouterInput) -> Tensor:
        """Return which sequences have no condition, bool (B,)."""
        batch = inp.mask_BT.shape[0]
        if not self.uncond:
            return torch.zeros(batch, dtype=torch.bool, device=inp.mask_BT.device)
        if "null" in inp.cond:
            null_B = inp.cond["null"]
        elif self.null_label is not None and "label" in inp.cond:
            null_B = inp.cond["label"] == self.null_label
        else:
            raise InputError(
                "cond['null']: router promoe needs bool (B,), True = no condition, and got none; "
                "give it, or set null_label and give cond['label'], or set uncond=False"
            )
        if not isinstance(null_B, Tensor):
            raise InputError(
                f"cond['null']: expected a bool tensor of shape ({batch},), "
                f"got {type(null_B).__name__}"
            )
        if null_B.dtype != torch.bool or tuple(null_B.shape) != (batch,):
            raise InputError(
                f"cond['null']: expected bool of shape ({batch},), "
                f"got {null_B.dtype} of shape {tuple(null_B.shape)}"
            )
        return null_B

    def cosines(self, h_ND: Tensor) -> Tensor:
        """Return cos(h, p_e), (N, R); norms are at least 1e-12."""
        h_ND = gating.at_least_float32(h_ND)
        along_NR = h_ND @ unit(self.prototypes.to(h_ND.dtype)).T
        return along_NR / h_ND.norm(dim=-1, keepdim=True).clamp_min(1e-12)

    def logits(self, inp: RouterInput) -> Tensor:
        """Return cosines with bias and allowance, (N, E); -inf at the unconditional expert."""
        cosine_NR = self.cosines(inp.x_ND)
        padded_NE = nn.functional.pad(cosine_NR, (0, self.n_experts - self.n_routed))
        routed_E = torch.arange(self.n_experts, device=cosine_NR.device) < self.n_routed
        return opened(padded_NE, inp).masked_fill(~routed_E, -torch.inf)

    def mapped(self, logits: Tensor, softmax_dim: int) -> Tensor:
        """Return the weight that goes with each logit."""
        if self.score_map == "softmax":
            return gating.softmax(logits, softmax_dim)
        return torch.sigmoid(logits) if self.score_map == "sigmoid" else logits

    # ------------------------------------------------------------------ decisions

    def decide(self, inp: RouterInput) -> RouterOutput:
        if inp.causal and not self.causal_safe:
            raise UsageError(
                "router promoe: experts that choose leak the future of a decoder; "
                "set choice to 'token'"
            )
        null_B = self.null_rows(inp)
        routed_BT = inp.mask_BT & ~null_B.unsqueeze(1)
        logits_NE = self.logits(inp)
        form = self._token_choice if self.choice == "token" else self._expert_choice
        choice, member_GSE = form(logits_NE, null_B, routed_BT, inp)
        probs_NE = gating.softmax(logits_NE)
        decision = RoutingDecision(
            choice=choice,
            n_experts=self.n_experts,
            shape=(inp.mask_BT.shape[0], inp.mask_BT.shape[1]),
            mask_N=inp.mask_N,
            logits_NE=logits_NE,
            probs_NE=probs_NE,
            weights=self.weights_label(),
            # Null tokens had no choice, so they are no load.
            stats={"count_E": member_GSE.sum((0, 1)).to(torch.float32)},
            extra={"null_B": null_B},
        )
        aux = self._losses(member_GSE, probs_NE, routed_BT, inp) if inp.training else {}
        return RouterOutput(decision=decision, aux=aux, carry=inp.carry or {})

    def _token_choice(
        self, logits_NE: Tensor, null_B: Tensor, routed_BT: Tensor, inp: RouterInput
    ) -> tuple[TokenChoice, Tensor]:
        idx_NK = closed(forced(gating.top_k(logits_NE, self.k), inp, self.n_routed), logits_NE, inp)
        idx_NK = torch.where(routed_BT.reshape(-1, 1), idx_NK, NOBODY)
        picked_NK = idx_NK >= 0
        w_NK = self.mapped(logits_NE, -1).gather(-1, idx_NK.clamp_min(0))
        w_NK = torch.where(picked_NK, w_NK, torch.zeros_like(w_NK))
        member_NE = torch.zeros_like(logits_NE, dtype=torch.int64).scatter_add(
            -1, idx_NK.clamp_min(0), picked_NK.to(torch.int64)
        )
        if self.uncond:
            alone_N = (inp.mask_BT & null_B.unsqueeze(1)).reshape(-1)
            idx_NK, w_NK = idx_NK.clone(), w_NK.clone()
            idx_NK[alone_N, 0] = self.n_routed
            w_NK[alone_N, 0] = 1.0
        return TokenChoice(idx_NK=idx_NK, w_NK=w_NK), (member_NE > 0).unsqueeze(0)

    def _expert_choice(
        self, logits_NE: Tensor, null_B: Tensor, routed_BT: Tensor, inp: RouterInput
    ) -> tuple[ExpertChoice, Tensor]:
        batch, length = inp.mask_BT.shape
        logits_BTE = logits_NE.reshape(batch, length, -1)
        closed_BTE = logits_BTE.masked_fill(~routed_BT.unsqueeze(-1), -torch.inf)
        wanted_B = self.tokens_per_expert(routed_BT.sum(1))
        queue_BTE = ahead(closed_BTE.detach(), inp, self.n_routed)
        queue_BTE = queue_BTE.masked_fill(torch.isneginf(closed_BTE), -torch.inf)
        tok_BET = torch.argsort(queue_BTE, dim=1, descending=True, stable=True).transpose(1, 2)
        place_T = torch.arange(length, device=tok_BET.device)
        is_open_BET = ~torch.isneginf(closed_BTE.transpose(1, 2).gather(-1, tok_BET))
        served_BET = is_open_BET & (place_T < wanted_B[:, None, None])
        w_BET = self.mapped(closed_BTE, 1).transpose(1, 2).gather(-1, tok_BET)
        w_BET = torch.where(served_BET, w_BET, torch.zeros_like(w_BET))
        member_BET = torch.zeros_like(served_BET).scatter(-1, tok_BET, served_BET)
        tok_BET = torch.where(served_BET, tok_BET, NOBODY)
        if self.uncond:
            alone_BT = inp.mask_BT & null_B.unsqueeze(1)
            tok_BET[:, -1] = torch.where(alone_BT, place_T, NOBODY)
            w_BET[:, -1] = alone_BT.to(w_BET.dtype)
        slots = length if bool(null_B.any()) else max(int(wanted_B.max()), 1)
        choice = ExpertChoice(
            tok_GEC=tok_BET[..., :slots], w_GEC=w_BET[..., :slots], group_size=length
        )
        return choice, member_BET.transpose(1, 2)

    def tokens_per_expert(self, real_B: Tensor) -> Tensor:
        """Return how many tokens each routed expert takes of an image with so many, int64 (B,)."""
        share_B = real_B * self.k // self.n_routed
        return share_B.clamp_min(1).minimum(real_B)

    def weights_label(self) -> Weights:
        """Say what the weights promise, for traces."""
        return "signed" if self.score_map == "identity" else "unnormalised"

    # ------------------------------------------------------------------ losses

    def _losses(
        self, member_GSE: Tensor, probs_NE: Tensor, routed_BT: Tensor, inp: RouterInput
    ) -> dict[str, AuxTerm]:
        n_groups, size, _ = member_GSE.shape
        terms: dict[str, AuxTerm] = {}
        if self.rcl:
            member_GSR = member_GSE[..., : self.n_routed]
            by_batch = self.choice == "token"  # one group, that of all ranks
            value = contrastive_loss(
                self.prototypes,
                inp.x_ND.reshape(n_groups, size, -1),
                member_GSR,
                self.tau,
                process_group=self.process_group if by_batch else None,
            )
            if not by_batch:
                n_terms = contrasted(member_GSR.sum(1)).sum()
                value = losses.share_of_ranks(value, n_terms, inp.mask_BT, self.process_group)
            terms["contrastive"] = AuxTerm(value, self.rcl)
        if self.balance:
            count_E = member_GSE.sum((0, 1)).to(probs_NE.dtype)
            count_E = losses.summed_over_ranks(count_E, self.process_group)
            f_E = count_E / count_E.sum().clamp_min(1)
            mean_E = losses.masked_mean(probs_NE, routed_BT.reshape(-1))
            value = losses.share_of_ranks(
                self.n_routed * (f_E * mean_E).sum(),
                routed_BT.sum(),
                inp.mask_BT,
                self.process_group,
            )
            terms["balance"] = AuxTerm(value, self.balance)
        return terms

    def router_flops(self, n_tokens: int) -> float:
        return 2.0 * n_tokens * self.prototypes.numel()

    @property
    def nominal_active(self) -> float:
        """Routed experts per token; the shared one comes on top."""
        return float(self.k)


def contrasted(count_GR: Tensor) -> Tensor:
    """Return which experts have tokens in a group, and others to be told from, bool (G, R)."""
    live_GR = count_GR > 0
    return live_GR & (live_GR.sum(-1, keepdim=True) >= 2)


def contrastive_loss(
    prototypes_RD: Tensor,
    h_GSD: Tensor,
    member_GSR: Tensor,
    tau: float,
    *,
    process_group: Any = None,
) -> Tensor:
    """Return the routing contrastive loss, averaged over experts with tokens (and over groups).

    ``member_GSR`` says which token is with which expert. A group with fewer than two live experts
    contributes nothing; without any the loss is 0, with gradient 0. With a process group, the
    tokens of a group are those of all ranks.
    """
    h_GSD = gating.at_least_float32(h_GSD)
    member_GSR = member_GSR.to(h_GSD.dtype)
    count_GR = losses.summed_over_ranks(member_GSR.sum(1), process_group)
    sum_GRD = torch.einsum("gsr,gsd->grd", member_GSR, h_GSD)
    sum_GRD = losses.summed_over_ranks(sum_GRD, process_group)
    mean_GRD = sum_GRD / count_GR.clamp_min(1).unsqueeze(-1)
    logits_GRR = unit(prototypes_RD.to(h_GSD.dtype)) @ unit(mean_GRD).transpose(1, 2) / tau
    live_GR = count_GR > 0
    group, own = contrasted(count_GR).nonzero(as_tuple=True)
    if not len(own):
        return 0.0 * logits_GRR.sum()
    rows = logits_GRR[group, own].masked_fill(~live_GR[group], -torch.inf)
    return nn.functional.cross_entropy(rows, own)
