"""Token choice in four steps: score, normalise, select, weigh. Most routers override one of them.

The order of a call is

    score, + logit_bias, allow, noise, normalise, mix, select, force, weigh, capacity

Axes: B sequences, T positions, N = B * T tokens, D width, E experts, K places per token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from crossroads.core import gating, losses
from crossroads.core.errors import InputError, UsageError
from crossroads.core.later import LaterMapping
from crossroads.core.routed import AuxTerm
from crossroads.moe.capacity import Capacity, overflow
from crossroads.moe.checks import check_coefficients, check_known, check_whole
from crossroads.moe.contract import (
    NOBODY,
    ExpertKind,
    Router,
    RouterInput,
    RouterOutput,
    RoutingDecision,
    TokenChoice,
    Weights,
)

NoiseScale = Literal["absolute", "per_expert"]
IN_ORDER = (
    "leave capacity out, or train with one place a token and "
    "Capacity(factor=..., eval_factor=math.inf)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The intermediate tensors of one call, for losses and overrides.

    ``clean_NE`` are logits with ``logit_bias`` and ``allow`` but without noise, ``logits_NE`` what
    was normalised, ``probs_NE`` the result (after mixing).
    """

    clean_NE: Tensor
    logits_NE: Tensor
    probs_NE: Tensor
    idx_NK: Tensor
    mask_N: Tensor


class TokenChoiceRouter(Router):
    """Softmax over a linear score, the k best experts of every token.

    Parameters
    ----------
    d : width of the tokens
    n_experts : E, null experts included
    k : places per token
    renorm : divide the chosen weights by their sum; None = the router's default
    noise_std : standard deviation of Gaussian noise on the logits in training, divided by E when
        ``noise_scale`` is ``per_expert``
    balance : coefficient of the Switch balance loss; 0 leaves it out
    f_norm : what the loss divides its counts by, see ``losses.switch_balance``
    z_loss : coefficient of the router z-loss
    capacity : None = dropless; a number is a ``Capacity`` with that factor. With one that lets
        later tokens take places (``Capacity.keeps_order``) decoders refuse the router
    bias : whether the linear score has one
    """

    default_renorm: ClassVar[bool] = False

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        k: int = 1,
        renorm: bool | None = None,
        noise_std: float = 0.0,
        noise_scale: NoiseScale = "absolute",
        balance: float = 0.01,
        f_norm: losses.Normalisation = "picks",
        z_loss: float = 0.0,
        capacity: Capacity | float | None = None,
        bias: bool = False,
        kinds: tuple[ExpertKind, ...] | None = None,
    ) -> None:
        super().__init__(n_experts, kinds)
        check_whole(k=k)
        if k > n_experts == 1:
            raise UsageError(
                f"n_experts: router {_name(self)!r} needs at least {k} experts for k = {k}, got 1"
            )
        if not 1 <= k <= n_experts:
            raise UsageError(
                f"k: expected between 1 and {n_experts} (the experts) for router {_name(self)!r}, "
                f"got {k}"
            )
        check_coefficients(noise_std=noise_std, balance=balance, z_loss=z_loss)
        check_known("noise_scale", noise_scale, NoiseScale)
        check_known("f_norm", f_norm, losses.Normalisation)
        self.d = d
        self.k = k
        self.renorm = self.default_renorm if renorm is None else renorm
        self.noise_std = noise_std
        self.noise_scale = noise_scale
        self.balance = balance
        self.f_norm: losses.Normalisation = f_norm
        self.z_loss = z_loss
        if capacity is not None and not isinstance(capacity, Capacity):
            capacity = Capacity(factor=capacity)
        self.capacity = capacity
        self.process_group: Any = None  # set where counts must be summed over ranks
        self.queue_for(k)
        self.build_score(bias)

    def queue_for(self, places: int) -> None:
        """Say what queues for so many places a token mean for causality, if there are any."""
        if self.capacity is None:
            return
        self.per_token = False
        if not self.capacity.keeps_order(places):
            self.causal_safe = False
            self.remedy = IN_ORDER

    # ------------------------------------------------------------------ the four choices

    def build_score(self, bias: bool) -> None:
        """Make the parameters of ``score``."""
        self.gate = nn.Linear(self.d, self.n_experts, bias=bias)
        nn.init.normal_(self.gate.weight, std=self.d**-0.5)
        if bias:
            nn.init.zeros_(self.gate.bias)

    def score(self, inp: RouterInput) -> Tensor:
        """Return clean logits (N, E)."""
        x_ND = gating.at_least_float32(inp.x_ND)
        bias = None if self.gate.bias is None else self.gate.bias.to(x_ND.dtype)
        return nn.functional.linear(x_ND, self.gate.weight.to(x_ND.dtype), bias)

    def normalise(self, logits_NE: Tensor, inp: RouterInput) -> Tensor:
        """Return probabilities (N, E)."""
        return gating.softmax(logits_NE)

    def mix(self, probs_NE: Tensor, inp: RouterInput) -> Tensor:
        """Return probabilities mixed over tokens; the default mixes nothing."""
        return probs_NE

    def select(self, probs_NE: Tensor, logits_NE: Tensor, inp: RouterInput) -> Tensor:
        """Return experts (N, K) in descending order of the selection score, -1 = empty place."""
        if type(self).mix is TokenChoiceRouter.mix:
            return gating.top_k(logits_NE, self.k)  # finer than probabilities, which round to ties
        return gating.top_k(probs_NE.masked_fill(torch.isneginf(logits_NE), -torch.inf), self.k)

    def weigh(self, probs_NE: Tensor, idx_NK: Tensor, inp: RouterInput) -> Tensor:
        """Return weights (N, K) of chosen experts; those of empty places are overwritten by 0."""
        may_be_empty = has_empty(idx_NK)
        w_NK = gating.at_least_float32(probs_NE)
        w_NK = w_NK.gather(-1, idx_NK.clamp_min(0) if may_be_empty else idx_NK)
        if not self.renorm:
            return w_NK
        tiny = torch.finfo(w_NK.dtype).tiny
        w_NK = w_NK.clamp_min(tiny)
        if gating.is_scant(w_NK):
            w_NK = w_NK.masked_fill(idx_NK < 0, 0.0) if may_be_empty else w_NK
            return w_NK / w_NK.sum(-1, keepdim=True).clamp_min(tiny)
        # w / sum(w), written as a softmax of logs: where one place is left its gradient is exactly
        # zero, and not rounding noise that Adam would turn into full steps.
        return gating.softmax(w_NK.log().masked_fill(idx_NK < 0, -torch.inf))

    def losses(self, scored: Scored, inp: RouterInput) -> dict[str, AuxTerm]:
        """Return the auxiliary losses of a training pass."""
        terms: dict[str, AuxTerm] = {}
        if self.balance:
            value = losses.switch_balance(
                scored.probs_NE,
                scored.idx_NK,
                scored.mask_N,
                f_norm=self.f_norm,
                group=self.process_group,
            )
            terms["balance"] = AuxTerm(value, self.balance)
        if self.z_loss:
            terms["z"] = AuxTerm(losses.z_loss(scored.clean_NE, scored.mask_N), self.z_loss)
        return terms

    # ------------------------------------------------------------------ the order of a call

    def decide(self, inp: RouterInput) -> RouterOutput:
        return self.decide_by(self.score(inp), inp)

    def decide_by(self, score_NE: Tensor, inp: RouterInput) -> RouterOutput:
        """Return the decision for what ``score`` gave."""
        mask_N = inp.mask_N
        clean_NE = opened(score_NE, inp)
        logits_NE = self.noisy(clean_NE, inp)
        is_finite = logits_NE is score_NE and inp.is_full  # nothing has closed what was checked
        probs_NE = self.mix(self._normalised(logits_NE, inp, is_finite=is_finite), inp)
        idx_NK = self.select(probs_NE, logits_NE, inp)
        idx_NK = closed(forced(idx_NK, inp, self.n_experts), logits_NE, inp)
        scored = Scored(
            clean_NE=clean_NE,
            logits_NE=logits_NE,
            probs_NE=probs_NE,
            idx_NK=idx_NK,
            mask_N=mask_N,
        )
        w_NK = self.weigh(probs_NE, idx_NK, inp)
        if has_empty(idx_NK):
            w_NK = w_NK.masked_fill(idx_NK < 0, 0.0)
        decision = RoutingDecision(
            choice=TokenChoice(idx_NK=idx_NK, w_NK=w_NK, dropped_NK=self.drops(idx_NK, w_NK, inp)),
            n_experts=self.n_experts,
            shape=(inp.x_BTD.shape[0], inp.x_BTD.shape[1]),
            mask_N=mask_N,
            logits_NE=clean_NE,
            probs_NE=probs_NE,
            weights=self.weights_label(),
            stats=self._stats(idx_NK.detach(), inp),
            extra=self.extra(scored, inp),
        )
        aux = self.losses(scored, inp) if inp.training else {}
        return RouterOutput(decision=decision, aux=aux, carry=inp.carry or {})

    def _normalised(self, logits_NE: Tensor, inp: RouterInput, *, is_finite: bool) -> Tensor:
        """Return what ``normalise`` does, which need not look for closed rows where none can be."""
        mine = getattr(self.normalise, "__func__", None)
        if is_finite and mine is TokenChoiceRouter.normalise and gating.is_scant(logits_NE):
            return torch.softmax(gating.at_least_float32(logits_NE), -1)
        return self.normalise(logits_NE, inp)

    def _stats(self, idx_NK: Tensor, inp: RouterInput) -> Mapping[str, Tensor]:
        """Return the counts; outside training nobody may ever ask for them."""

        def made() -> dict[str, Tensor]:
            return {"count_E": losses.pick_counts(idx_NK, self.n_experts)}

        at_once = inp.training or torch.compiler.is_compiling()
        return made() if at_once else LaterMapping(made)

    def noisy(self, clean_NE: Tensor, inp: RouterInput) -> Tensor:
        """Return logits with the noise of a training pass."""
        if not inp.training or not self.noise_std:
            return clean_NE
        return clean_NE + self.sigma * inp.noise(tuple(clean_NE.shape), clean_NE)

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise in training."""
        return self.noise_std / (self.n_experts if self.noise_scale == "per_expert" else 1)

    def extra(self, scored: Scored, inp: RouterInput) -> dict[str, Any]:
        """Return router-private tensors worth keeping with the decision."""
        return {}

    def weights_label(self) -> Weights:
        """Say what the weights promise, for traces."""
        return "normalised" if self.renorm else "unnormalised"

    def drops(self, idx_NK: Tensor, w_NK: Tensor, inp: RouterInput) -> Tensor | None:
        """Return the places lost to capacity, or None where nothing can be lost.

        Raises UsageError in a decoder where a later token could take an earlier one's place.
        """
        if self.capacity is None:
            return None
        if inp.causal and not self.capacity.keeps_order(idx_NK.shape[1]):
            raise UsageError(
                f"router {_name(self)!r}: its capacity lets later tokens take places of earlier "
                f"ones and cannot serve a decoder; {IN_ORDER}"
            )
        batch, length = inp.mask_BT.shape
        shape = (1, batch * length) if self.capacity.group == "batch" else (batch, length)
        by_gate = self.capacity.priority == "gate"
        nulls = torch.tensor([kind == "null" for kind in self.kinds], device=idx_NK.device)
        dropped = overflow(
            idx_NK.reshape(*shape, -1),
            inp.mask_BT.reshape(shape),
            self.n_experts,
            self.capacity,
            training=inp.training,
            priority_GS=self.priority(w_NK, inp).detach().reshape(shape) if by_gate else None,
            unlimited_E=nulls,
        )
        return dropped.reshape(idx_NK.shape)

    def priority(self, w_NK: Tensor, inp: RouterInput) -> Tensor:
        """Return who queues first under ``priority="gate"``, larger = earlier, shape (N,)."""
        return w_NK[:, 0]

    @property
    def nominal_active(self) -> float:
        """Experts a token is expected to run, for sizing experts at equal compute."""
        return float(self.k)


def _name(router: Router) -> str:
    return getattr(router, "name", type(router).__name__)


def opened(logits_NE: Tensor, inp: RouterInput) -> Tensor:
    """Return logits with ``logit_bias`` added and the experts that ``allow`` forbids at -inf.

    Raises InputError for logits that are not finite, a bias of NaN or plus infinity and shapes that
    do not fit.
    """
    check_finite(logits_NE, inp)
    if inp.logit_bias is not None:
        if not bool((inp.logit_bias < torch.inf).all()):
            got = "NaN" if bool(torch.isnan(inp.logit_bias).any()) else "infinity"
            raise InputError(
                f"logit_bias: expected numbers, got {got}; forbid the other experts by allow"
            )
        logits_NE = logits_NE + per_token(inp.logit_bias, logits_NE, inp, "logit_bias")
    if inp.allow is not None:
        allowed_NE = per_token(inp.allow, logits_NE, inp, "allow")
        if allowed_NE.dtype != torch.bool:
            raise InputError(f"allow: expected bool, got {allowed_NE.dtype}")
        logits_NE = logits_NE.masked_fill(~allowed_NE, -torch.inf)
    return logits_NE


def has_empty(idx_NK: Tensor) -> bool:
    """Return whether a place may be empty (-1); looked at where that is cheaper than masking."""
    if idx_NK.device.type != "cpu" or not idx_NK.numel() or not gating.is_scant(idx_NK):
        return True
    return bool(idx_NK.min().item() < 0)


def check_finite(logits_NE: Tensor, inp: RouterInput) -> None:
    """Raise InputError where logits of real tokens are not finite."""
    logits_NE = logits_NE.detach()
    # A sum is finite only if all terms are; it costs no copy. Padding, or an overflow of the sum
    # itself, is told apart afterwards.
    if math.isfinite(logits_NE.sum().item()):
        return
    if not bool(torch.isfinite(logits_NE[inp.mask_N]).all()):
        raise InputError(
            f"router of layer {inp.layer}: logits hold NaN or infinity; check the learning rate, "
            "the norm before the layer and the input for NaN"
        )


def per_token(given: Tensor, logits_NE: Tensor, inp: RouterInput, name: str) -> Tensor:
    """Return (E,), (B, E) or (B, T, E) as (N, E). Raises InputError for any other shape."""
    batch, length = inp.mask_BT.shape
    n_experts = logits_NE.shape[-1]
    shapes = {1: (n_experts,), 2: (batch, n_experts), 3: (batch, length, n_experts)}
    if tuple(given.shape) != shapes.get(given.ndim):
        raise InputError(
            f"{name}: expected shape {shapes[1]}, {shapes[2]} or {shapes[3]}, "
            f"got {tuple(given.shape)}"
        )
    if given.ndim == 2:
        given = given.unsqueeze(1)
    return given.expand(batch, length, n_experts).reshape(-1, n_experts)


def wanted_experts(inp: RouterInput, n_experts: int) -> Tensor | None:
    """Return ``force`` (B, T), -1 = none, of a training pass, or None where nothing is forced.

    Raises InputError for another shape or type and for experts from ``n_experts`` on.
    """
    if inp.force_BT is None or not inp.training:
        return None
    if inp.force_BT.shape != inp.mask_BT.shape:
        raise InputError(
            f"force: expected shape {tuple(inp.mask_BT.shape)}, got {tuple(inp.force_BT.shape)}"
        )
    if inp.force_BT.is_floating_point() or inp.force_BT.dtype == torch.bool:
        raise InputError(
            f"force: expected whole numbers (int64, -1 for none), got {inp.force_BT.dtype}"
        )
    if int(inp.force_BT.max()) >= n_experts:
        raise InputError(
            f"force: expected experts below {n_experts} or -1 for none, "
            f"got {int(inp.force_BT.max())}"
        )
    return inp.force_BT


def forced(idx_NK: Tensor, inp: RouterInput, n_experts: int) -> Tensor:
    """Return the choice with the expert of ``force`` in the last place where it was not chosen."""
    wanted_BT = wanted_experts(inp, n_experts)
    if wanted_BT is None:
        return idx_NK
    wanted_N1 = wanted_BT.reshape(-1, 1)
    absent_N = (wanted_N1 >= 0).squeeze(1) & ~(idx_NK == wanted_N1).any(-1)
    last_N = (idx_NK >= 0).sum(-1).clamp_min(1) - 1
    is_last_NK = torch.arange(idx_NK.shape[1], device=idx_NK.device) == last_N.unsqueeze(1)
    return torch.where(is_last_NK & absent_N.unsqueeze(1), wanted_N1, idx_NK)


def closed(idx_NK: Tensor, logits_NE: Tensor, inp: RouterInput) -> Tensor:
    """Return the choice with padding and forbidden experts taken out (-1)."""
    if inp.is_full and inp.allow is None:
        return idx_NK
    keep_NK = inp.mask_N.unsqueeze(1) & (idx_NK >= 0)
    if inp.allow is not None:
        keep_NK = keep_NK & ~torch.isneginf(logits_NE.gather(-1, idx_NK.clamp_min(0)))
    return torch.where(keep_NK, idx_NK, NOBODY)


def grouped(values_N: Tensor, inp: RouterInput) -> Tensor:
    """Return rows of tokens as rows of groups, one group a sequence: (N, ...) to (B, T, ...)."""
    return values_N.reshape(*inp.mask_BT.shape, *values_N.shape[1:])


def unit(x: Tensor) -> Tensor:
    """Return vectors of length 1 along the last axis; zeros stay zeros."""
    return nn.functional.normalize(x, dim=-1, eps=1e-12)
