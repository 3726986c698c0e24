"""VQMoE: a learned codebook names one expert beside the one a linear gate chooses.

Two branches run the same experts, and a gate of two weighs them:

    y_c = sum over the K best of r, p_e f_e(x),  r_e = <x, u_e / ||u_e||>,  p = softmax(r)
    q   = nearest code to x,  x~ = (1 - c) x + c v_q,  y_d = LN(f_(q mod E)(LN(x~)))
    y   = g_c y_c + g_d y_d,  g = softmax(W_g x + b_g)

    loss = beta (mean ||v_q - sg x||^2 + 0.25 mean ||sg v_q - x||^2) + 0.01 balance of r

The gradient to x through x~ is 1 - c, and none reaches the codes but through the codebook loss.

Source: On the Role of Discrete Representation in Sparse Mixture of Experts (2024). The published
code differs from it; here the paper's way is the default: the linear gate is trained by its softmax
weight and a balance loss (``compat_frozen_gate``: weight 1 and no loss at K = 1), the blend is
convex (``compat_blend``: (1 - 2c) x + c v_q), and the norm of the discrete branch is its own.
Choices made here: codes start from random tokens of the first batch; with a cosine codebook the
code is rescaled to the token's length before blending, and the codebook loss compares directions.

Axes: N tokens, D width, E experts, K places, M codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from crossroads.core import gating, losses
from crossroads.core.errors import InputError, UsageError
from crossroads.core.routed import AuxTerm
from crossroads.moe.capacity import Capacity
from crossroads.moe.checks import check_coefficients
from crossroads.moe.contract import (
    NOBODY,
    Branch,
    RouterInput,
    RouterOutput,
    RoutingDecision,
    TokenChoice,
    without_halves,
)
from crossroads.moe.router import Scored, TokenChoiceRouter, per_token, unit, wanted_experts

Branches = Literal["both", "discrete", "continuous"]
CodebookKind = Literal["l2", "cosine", "balanced"]
BALANCE_TEMPERATURE = 0.3  # of the probabilities in the balance loss, not of the weights


class Codebook(nn.Module):
    """M codes in the space of the tokens, each token represented by the nearest.

    Parameters
    ----------
    d, n_codes : width, M
    kind : ``l2`` distance; ``cosine`` similarity; ``balanced``, cosine with codes of low usage
        drawn to random tokens: v <- (1 - a) v + a x', a = exp(-10 M u / (1 - decay) - 1e-3), u the
        moving average of the share of tokens that use the code
    commit : weight of the commitment term
    init_from_data : take the first codes from the first training batch
    decay : of the usage's moving average, per optimiser step
    """

    def __init__(
        self,
        d: int,
        n_codes: int,
        *,
        kind: CodebookKind = "l2",
        commit: float = 0.25,
        init_from_data: bool = True,
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        if kind not in get_args(CodebookKind):
            raise UsageError(f"codebook: expected one of {get_args(CodebookKind)}, got {kind!r}")
        if n_codes < 1:
            raise UsageError(f"n_codes: expected at least 1, got {n_codes}")
        self.n_codes = n_codes
        self.kind: CodebookKind = kind
        self.commit_weight = commit
        self.decay = decay
        self.codes = nn.Parameter(torch.empty(n_codes, d).uniform_(-1 / n_codes, 1 / n_codes))
        self.register_buffer("started", torch.tensor(not init_from_data))
        self.register_buffer("usage_M", torch.zeros(n_codes))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Codebook:
        """Move and cast as any module, but keep the usage: its average would stall in halves."""
        return super()._apply(without_halves(fn, self.usage_M), recurse)

    @torch.no_grad()
    def state_of_pass(self, x_ND: Tensor, inp: RouterInput, group: Any = None) -> dict[str, Tensor]:
        """Return what the pass finds out about the next state: first codes, or revived ones.

        First codes are tokens of all ranks of a process group, the same for all.
        """
        begins = not bool(self.started)
        if not inp.training or not (begins or self.kind == "balanced"):
            return {}
        x_ND = x_ND[inp.mask_N]
        if begins:
            n_before, n_all = _place_among_ranks(x_ND, group)
            if not n_all:
                return {}
            drawn_M = _spread(n_all, self.n_codes, inp.rng).to(x_ND.device)
            return {"codes": _rows_of_ranks(x_ND, drawn_M, n_before, group)}
        if not len(x_ND):
            return {}
        closeness_MN = torch.softmax(unit(self.codes.to(x_ND.dtype)) @ unit(x_ND).T, dim=-1)
        drawn_M = torch.multinomial(closeness_MN.cpu(), 1, generator=inp.rng).squeeze(-1)
        return {"revived": x_ND[drawn_M.to(x_ND.device)]}

    @torch.no_grad()
    def nearest(self, x_ND: Tensor, codes_MD: Tensor, allowed_NM: Tensor | None = None) -> Tensor:
        """Return each token's code, int64 (N,), ties to the lower; -1 where none is allowed."""
        return self.nearest_by(x_ND @ codes_MD.T, codes_MD, allowed_NM)

    @torch.no_grad()
    def nearest_by(
        self, product_NM: Tensor, codes_MD: Tensor, allowed_NM: Tensor | None = None
    ) -> Tensor:
        """Do as ``nearest``, from the inner products of tokens and codes.

        They are enough: a token's own length changes none of its comparisons.
        """
        if self.kind == "l2":
            closeness_NM = 2 * product_NM - codes_MD.square().sum(-1)
        else:
            closeness_NM = product_NM / codes_MD.norm(dim=-1).clamp_min(1e-12)
        if allowed_NM is None:
            return gating.first_maximum(closeness_NM)
        code_N = gating.first_maximum(closeness_NM.masked_fill(~allowed_NM, -torch.inf))
        return torch.where(allowed_NM.any(-1), code_N, NOBODY)

    def scaled(self, rows_ND: Tensor, x_ND: Tensor) -> Tensor:
        """Return codes as long as their tokens where only the direction was learned."""
        if self.kind == "l2":
            return rows_ND
        return unit(rows_ND) * x_ND.detach().norm(dim=-1, keepdim=True)

    def loss(self, rows_ND: Tensor, x_ND: Tensor, mask_N: Tensor) -> Tensor:
        """Return the mean squared pull of codes to tokens plus ``commit`` times the reverse."""
        if self.kind != "l2":
            rows_ND, x_ND = unit(rows_ND), unit(x_ND)
        if not bool(mask_N.all()):
            rows_ND, x_ND = rows_ND[mask_N], x_ND[mask_N]
        if not len(x_ND):
            return 0.0 * (rows_ND.sum() + x_ND.sum())
        pull: Tensor = _Pull.apply(rows_ND, x_ND, self.commit_weight)
        return pull

    @torch.no_grad()
    def commit(self, count_M: Tensor, new_state: Mapping[str, Tensor]) -> None:
        """Take over the first codes, or advance usage and revive codes that few tokens use."""
        if self.kind == "balanced":
            share_M = count_M.to(self.usage_M.dtype) / count_M.sum().clamp_min(1)
            self.usage_M.mul_(self.decay).add_(share_M, alpha=1 - self.decay)
        if "codes" in new_state and not bool(self.started):
            self.codes.copy_(new_state["codes"])
            self.started.fill_(True)
        elif "revived" in new_state:
            rarity_M = -self.usage_M * self.n_codes * 10 / (1 - self.decay) - 1e-3
            part_M1 = rarity_M.exp().unsqueeze(-1).to(self.codes.dtype)
            self.codes.lerp_(new_state["revived"].to(self.codes.dtype), part_M1)

    @torch.no_grad()
    def certified_radius(self, x_ND: Tensor) -> Tensor:
        """Return the distance of each token to the border of its code's cell, (N,)."""
        if self.kind != "l2":
            raise UsageError(f"codebook: only l2 cells have a certified radius, not {self.kind!r}")
        if x_ND.ndim != 2 or x_ND.shape[1] != self.codes.shape[1]:
            raise InputError(
                f"tokens: expected shape (N, {self.codes.shape[1]}), got {tuple(x_ND.shape)}"
            )
        if not bool(torch.isfinite(x_ND).all()):
            raise InputError("tokens: expected finite numbers, got NaN or infinity")
        codes_MD = self.codes.to(x_ND.dtype)
        distance_NM = (x_ND.unsqueeze(1) - codes_MD).square().sum(-1)
        code_N1 = gating.first_maximum(-distance_NM).unsqueeze(-1)
        apart_NM = (codes_MD[code_N1] - codes_MD).norm(dim=-1)
        margin_NM = (distance_NM - distance_NM.gather(-1, code_N1)) / (2 * apart_NM)
        # Of equal codes the lowest wins everywhere: there is no border to the others.
        return margin_NM.masked_fill(apart_NM == 0, torch.inf).amin(-1)


class _Pull(torch.autograd.Function):
    """mean ||v - sg x||^2 + weight * mean ||sg v - x||^2 from one difference instead of two."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, x_ND: Tensor, weight: float) -> Tensor:
        ctx.save_for_backward(rows_ND, x_ND)
        ctx.weight = weight
        flat = (rows_ND - x_ND).reshape(-1)
        return (1 + weight) * torch.dot(flat, flat) / flat.numel()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        # From the inputs, so that second derivatives are those of the formula, too.
        rows_ND, x_ND = ctx.saved_tensors
        scale = 2 * grads[0] / x_ND.numel()
        to_rows_ND = (rows_ND - x_ND.detach()) * scale
        if not ctx.needs_input_grad[1]:
            return to_rows_ND, None, None
        return to_rows_ND, (x_ND - rows_ND.detach()) * (ctx.weight * scale), None


def _place_among_ranks(x_ND: Tensor, group: Any) -> tuple[int, int]:
    """Return how many rows the ranks before this one have, and how many all have together."""
    if group is None:
        return 0, len(x_ND)
    mine = torch.tensor([len(x_ND)], device=x_ND.device)
    found = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(found, mine, group=group)
    rows = [int(count) for count in found]
    return sum(rows[: torch.distributed.get_rank(group)]), sum(rows)


def _rows_of_ranks(x_ND: Tensor, drawn_M: Tensor, n_before: int, group: Any) -> Tensor:
    """Return the rows that the first rank of a group has drawn from those of all, (M, D)."""
    if group is None:
        return x_ND[drawn_M]
    torch.distributed.broadcast(drawn_M, group=group, group_src=0)
    mine_M = (drawn_M >= n_before) & (drawn_M < n_before + len(x_ND))
    rows_MD = x_ND.new_zeros(len(drawn_M), x_ND.shape[1])
    rows_MD[mine_M] = x_ND[drawn_M[mine_M] - n_before]
    torch.distributed.all_reduce(rows_MD, group=group)
    return rows_MD


def _spread(n_rows: int, n_wanted: int, rng: torch.Generator | None) -> Tensor:
    """Return row numbers in random order, repeated where fewer rows than wanted are there."""
    order = torch.randperm(n_rows, generator=rng)
    return order[torch.arange(n_wanted) % n_rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Quantised:
    """One pass through the codebook: codes chosen, their vectors, and the tokens they stand for.

    ``score_NE`` and ``gate_N2`` are the logits of the gate and of the branches, where both run.
    """

    code_N: Tensor
    rows_ND: Tensor
    x_ND: Tensor
    new_state: Mapping[str, Tensor]
    score_NE: Tensor | None
    gate_N2: Tensor | None


class VQMoE(TokenChoiceRouter):
    """Linear gate and codebook side by side, over one set of experts.

    Raises UsageError for settings out of range.

    Parameters
    ----------
    d, n_experts : width of the tokens, number of experts
    k : experts of the continuous branch
    n_codes : M; None = E. Code q names expert q mod E
    contribution : c, how much of the blended input is the code
    commit : weight of the term that draws tokens to codes, against the one that draws codes
    beta : coefficient of the codebook loss
    branches : ``both``; ``discrete`` alone saves the gate and an expert call, as in fine-tuning;
        ``continuous`` alone is plain token choice
    codebook : ``l2`` distance, ``cosine``, or ``balanced``: cosine with M = E and revival of
        codes that few tokens use
    init_from_data : start codes at random tokens of the first training batch
    compat_frozen_gate, compat_blend : behave like the published code, see the module
    renorm, noise_std, balance, f_norm, z_loss, capacity : as in ``TokenChoiceRouter``
    """

    name = "vqmoe"

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        k: int = 1,
        n_codes: int | None = None,
        contribution: float = 0.05,
        commit: float = 0.25,
        beta: float = 0.08,
        branches: Branches = "both",
        codebook: CodebookKind = "l2",
        init_from_data: bool = True,
        compat_frozen_gate: bool = False,
        compat_blend: bool = False,
        renorm: bool | None = None,
        noise_std: float = 0.0,
        balance: float = 0.01,
        f_norm: losses.Normalisation = "picks",
        z_loss: float = 0.0,
        capacity: Capacity | float | None = None,
    ) -> None:
        if branches not in get_args(Branches):
            raise UsageError(f"branches: expected one of {get_args(Branches)}, got {branches!r}")
        check_coefficients(beta=beta, commit=commit)
        if not 0.0 <= contribution <= 1.0:
            raise UsageError(f"contribution: expected 0 to 1, got {contribution}")
        n_codes = n_experts if n_codes is None else n_codes
        if codebook == "balanced" and n_codes != n_experts:
            raise UsageError(
                f"n_codes: a balanced codebook has one code an expert ({n_experts}), got {n_codes}"
            )
        super().__init__(
            d,
            n_experts,
            k=k,
            renorm=True if compat_frozen_gate else renorm,
            balance=0.0 if compat_frozen_gate else balance,
            noise_std=noise_std,
            f_norm=f_norm,
            z_loss=z_loss,
            capacity=capacity,
        )
        nn.init.orthogonal_(self.gate.weight, gain=0.32)
        self.gate.requires_grad_(not (compat_frozen_gate and k == 1))
        self.branches: Branches = branches
        self.contribution = contribution
        self.compat_blend = compat_blend
        self.beta = beta
        self.codebook = Codebook(
            d, n_codes, kind=codebook, commit=commit, init_from_data=init_from_data
        )
        self.branch_gate = nn.Linear(d, 2)
        self.norm = nn.LayerNorm(d)

    # ------------------------------------------------------------------ continuous branch

    def score(self, inp: RouterInput) -> Tensor:
        x_ND = gating.at_least_float32(inp.x_ND)
        return nn.functional.linear(x_ND, self._rows(x_ND))

    def _rows(self, x_ND: Tensor) -> Tensor:
        """Return the gate's directions, (E, D)."""
        return unit(self.gate.weight.to(x_ND.dtype))

    def losses(self, scored: Scored, inp: RouterInput) -> dict[str, AuxTerm]:
        sharp_NE = gating.softmax(scored.logits_NE / BALANCE_TEMPERATURE)
        return super().losses(replace(scored, probs_NE=sharp_NE), inp)

    # ------------------------------------------------------------------ discrete branch

    def blend(self, x_ND: Tensor, code_ND: Tensor) -> Tensor:
        """Return the quantised input; its gradient to ``x_ND`` is 1 - c, to the code none."""
        part = self.contribution
        blended_ND = torch.lerp(x_ND, code_ND.detach(), part)
        return blended_ND - part * x_ND.detach() if self.compat_blend else blended_ND

    def normed(self, x_ND: Tensor) -> Tensor:
        """Return the layer norm of the discrete branch, before and after its expert."""
        wide = gating.at_least_float32(x_ND)
        weight_D, bias_D = self.norm.weight.to(wide.dtype), self.norm.bias.to(wide.dtype)
        eps = self.norm.eps
        return nn.functional.layer_norm(wide, (self.d,), weight_D, bias_D, eps).to(x_ND.dtype)

    def quantise(self, inp: RouterInput) -> _Quantised:
        """Return each token's code; the first training batch already goes by its own codes."""
        x_ND = gating.at_least_float32(inp.x_ND)
        new_state = self.codebook.state_of_pass(x_ND, inp, self.process_group)
        codes_MD = new_state.get("codes", self.codebook.codes).to(x_ND.dtype)
        score_NE, gate_N2, product_NM = self._products(x_ND, codes_MD)
        code_N = self.codebook.nearest_by(product_NM, codes_MD, self._allowed_codes(inp))
        return _Quantised(
            code_N=torch.where(inp.mask_N, code_N, NOBODY),
            rows_ND=codes_MD.index_select(0, code_N.clamp_min(0)),
            x_ND=x_ND,
            new_state=new_state,
            score_NE=score_NE,
            gate_N2=gate_N2,
        )

    def _products(self, x_ND: Tensor, codes_MD: Tensor) -> tuple[Tensor | None, ...]:
        """Return the logits of the gate and of the branches, and the inner products with the codes.

        One pass over the tokens for all three. Without a continuous branch there are only codes.
        """
        codes_MD = codes_MD.detach()
        if self.branches == "discrete":
            return None, None, nn.functional.linear(x_ND, codes_MD)
        weight_2D = self.branch_gate.weight.to(x_ND.dtype)
        rows = torch.cat([self._rows(x_ND), weight_2D, codes_MD])
        sizes = [self.n_experts, 2, len(codes_MD)]
        score_NE, gate_N2, product_NM = nn.functional.linear(x_ND, rows).split(sizes, -1)
        return score_NE, gate_N2 + self.branch_gate.bias.to(x_ND.dtype), product_NM

    def discrete_branch(self, found: _Quantised, gate_N1: Tensor, inp: RouterInput) -> Branch:
        """Return the route through the expert of each token's code, norms before and after."""
        idx_N1 = torch.where(found.code_N >= 0, found.code_N % self.n_experts, NOBODY).unsqueeze(1)
        w_N1 = (idx_N1 >= 0).to(found.x_ND.dtype)
        blended_ND = self.blend(found.x_ND, self.codebook.scaled(found.rows_ND, found.x_ND))
        return Branch(
            name="discrete",
            choice=TokenChoice(idx_NK=idx_N1, w_NK=w_N1, dropped_NK=self.drops(idx_N1, w_N1, inp)),
            x_ND=self.normed(blended_ND).to(inp.x_BTD.dtype),
            gate_N1=gate_N1,
            post=self.normed,
        )

    def _allowed_codes(self, inp: RouterInput) -> Tensor | None:
        """Return which codes a token may take: those of allowed experts, or of the forced one."""
        force_BT = wanted_experts(inp, self.n_experts)
        if inp.allow is None and force_BT is None:
            return None
        like_NE = inp.x_ND.new_zeros(inp.mask_N.shape[0], self.n_experts)
        expert_M = torch.arange(self.codebook.n_codes, device=like_NE.device) % self.n_experts
        open_NM = torch.ones(
            like_NE.shape[0], len(expert_M), dtype=torch.bool, device=like_NE.device
        )
        if inp.allow is not None:
            open_NM = per_token(inp.allow, like_NE, inp, "allow")[:, expert_M]
        if force_BT is not None:
            wanted_NM = open_NM & (force_BT.reshape(-1, 1) == expert_M)
            open_NM = torch.where(wanted_NM.any(-1, keepdim=True), wanted_NM, open_NM)
        return open_NM

    def certified_radius(self, x_ND: Tensor) -> Tensor:
        """Return how far each token may move, in any direction, with its code certain to stay.

        Half-spaces between the winning code v1 and every other v_m give the least of
        (||x - v_m||^2 - ||x - v1||^2) / (2 ||v_m - v1||), exactly. Raises UsageError unless the
        codebook is ``l2``, InputError for tokens of another shape or with NaN.
        """
        return self.codebook.certified_radius(x_ND)

    # ------------------------------------------------------------------ both

    def decide(self, inp: RouterInput) -> RouterOutput:
        if self.branches == "continuous":
            return super().decide(inp)
        found = self.quantise(inp)
        gates_N2 = self.branch_weights(found, inp)
        discrete = self.discrete_branch(found, gates_N2[:, 1:], inp)
        count_E = losses.pick_counts(discrete.choice.idx_NK, self.n_experts)
        count_M = losses.pick_counts(found.code_N, self.codebook.n_codes)
        aux: dict[str, AuxTerm] = {}
        if inp.training:
            value = self.codebook.loss(found.rows_ND, found.x_ND, found.code_N >= 0)
            aux["codebook"] = AuxTerm(value, self.beta)
        decision = RoutingDecision(
            choice=None,
            branches=(discrete,),
            n_experts=self.n_experts,
            shape=(inp.mask_BT.shape[0], inp.mask_BT.shape[1]),
            mask_N=inp.mask_N,
            stats={"count_E": count_E, "count_M": count_M},
            extra={"code_N": found.code_N},
        )
        if found.score_NE is not None:
            linear = self.decide_by(found.score_NE, inp)
            decision = self._joined(linear.decision, decision, gates_N2[:, :1], inp)
            aux.update(linear.aux)
        return RouterOutput(
            decision=decision, aux=aux, carry=inp.carry or {}, new_state=found.new_state
        )

    def _joined(
        self, linear: RoutingDecision, coded: RoutingDecision, gate_N1: Tensor, inp: RouterInput
    ) -> RoutingDecision:
        assert isinstance(linear.choice, TokenChoice)
        continuous = Branch(name="continuous", choice=linear.choice, x_ND=inp.x_ND, gate_N1=gate_N1)
        return replace(
            coded,
            branches=(continuous, *coded.branches),
            logits_NE=linear.logits_NE,
            probs_NE=linear.probs_NE,
            weights=linear.weights,
            stats={
                "count_E": linear.stats["count_E"] + coded.stats["count_E"],
                "count_M": coded.stats["count_M"],
            },
        )

    def branch_weights(self, found: _Quantised, inp: RouterInput) -> Tensor:
        """Return the weights of the continuous and the discrete branch, (N, 2); 0 at padding."""
        if found.gate_N2 is None:
            gates_N2 = found.x_ND.new_ones(found.x_ND.shape[0], 2)
        else:
            gates_N2 = gating.softmax(found.gate_N2)
        return torch.where(inp.mask_N.unsqueeze(1), gates_N2, torch.zeros_like(gates_N2))

    @torch.no_grad()
    def commit(self, stats: Mapping[str, Tensor], new_state: Mapping[str, Tensor]) -> None:
        if "count_M" in stats:
            self.codebook.commit(stats["count_M"], new_state)

    @property
    def nominal_active(self) -> float:
        """Expert calls per token: K of the continuous branch, one of the discrete."""
        return {"both": self.k + 1.0, "discrete": 1.0, "continuous": float(self.k)}[self.branches]
