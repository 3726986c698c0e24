"""What a router may look at, and what it decides.

A router is four small choices (score, normalise, select, weigh) plus losses and state. It gets a
``RouterInput`` and returns a ``RouterOutput`` whose ``RoutingDecision`` has one of three forms:

=================  ============================  ==================================================
``TokenChoice``    ``idx_NK``, ``w_NK``          every token names its experts
``ExpertChoice``   ``tok_GEC``, ``w_GEC``        every expert names its tokens, group by group
``Dense``          two (G, S, E, C) tensors      weighted mixtures in and out of expert slots
=================  ============================  ==================================================

Axes: B sequences, T positions, N = B * T tokens, D width, E selectable experts (null ones too),
K places per token, G groups of S tokens, C slots per expert and group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crossroads.core.errors import UsageError
from crossroads.core.later import Later
from crossroads.core.routed import AuxTerm, Carry

Granularity = Literal["token", "sequence", "batch"]
ExpertKind = Literal["ffn", "null", "identity", "const", "attention", "recurrent", "lora", "module"]
Weights = Literal["normalised", "unnormalised", "signed", "ones"]
NOBODY = -1  # an empty place, an empty slot


@dataclass(frozen=True, kw_only=True)
class RouterInput:
    """One layer's view of a forward pass.

    Attributes
    ----------
    x_BTD : normed tokens to route
    mask_BT : bool, True = real token
    is_full : no token is padding, as far as the layer was told: ``mask_BT`` is True throughout
    layer, n_layers, iteration : where in the model; ``iteration`` counts a looped layer
    training, step, progress, pass_id, causal, logit_bias, force_BT, allow, cond : as in
        ``crossroads.core.routed.RouteContext``
    rng : generator made for this call alone, when it is first read; the only source of randomness
        a router may use
    attn : (B, H, Tq, Tk) attention probabilities of the same layer, for routers that ask
    attn_out, resid_BTD : (B, T, D), for routers that ask
    carry : state of the previous routed layer, or None at the first
    cache : for incremental decoding, made by ``Router.init_cache``
    """

    x_BTD: Tensor
    mask_BT: Tensor
    is_full: bool = False
    layer: int = 0
    n_layers: int = 1
    iteration: int = 0
    training: bool = False
    step: int = 0
    progress: float = 0.0
    pass_id: int = 0
    causal: bool = False
    rng: Later[torch.Generator | None] = Later(None)  # noqa: RUF009 - a descriptor
    logit_bias: Tensor | None = None
    force_BT: Tensor | None = None
    allow: Tensor | None = None
    attn: Tensor | None = None
    attn_out: Tensor | None = None
    resid_BTD: Tensor | None = None
    carry: Carry | None = None
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    cache: Any = None

    @property
    def x_ND(self) -> Tensor:
        return self.x_BTD.reshape(-1, self.x_BTD.shape[-1])

    @property
    def mask_N(self) -> Tensor:
        return self.mask_BT.reshape(-1)

    def noise(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return standard normal numbers from this call's generator."""
        drawn = torch.randn(shape, generator=self.rng, dtype=torch.float32, device="cpu")
        return drawn.to(device=like.device, dtype=like.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenChoice:
    """Every token names its experts.

    ``idx_NK`` is int64, places in descending order of the selection score, -1 = empty. ``w_NK``
    multiplies the expert's output; no rule says that it sums to 1 or is positive. A picked null
    expert keeps its id and has weight 0. ``dropped_NK`` marks places lost to capacity: they keep
    id and weight, and are not executed.
    """

    idx_NK: Tensor
    w_NK: Tensor
    dropped_NK: Tensor | None = None

    @property
    def live_NK(self) -> Tensor:
        """Places that were asked for and not lost to capacity (null experts included)."""
        picked_NK = self.idx_NK >= 0
        return picked_NK if self.dropped_NK is None else picked_NK & ~self.dropped_NK


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertChoice:
    """Every expert names its tokens: ``tok_GEC`` int64 index inside the group, -1 = empty slot."""

    tok_GEC: Tensor
    w_GEC: Tensor
    group_size: int  # S; token (g, s) is row g * S + s of the flattened batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Dense:
    """Expert input = sum_s dispatch * x, output = sum_(e,c) combine * f_e(input); (G, S, E, C)."""

    dispatch_GSEC: Tensor
    combine_GSEC: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """One of several routes through the same experts: gate * post(combine(experts(x)))."""

    name: str
    choice: TokenChoice
    x_ND: Tensor
    gate_N1: Tensor
    post: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingDecision:
    """Who goes where in one layer (or one iteration of it).

    Attributes
    ----------
    choice : one of the three forms; None when there are ``branches``
    branches : several token choices over the same experts on different inputs
    n_experts : E, null experts included
    shape : (B, T) of the tokens decided about
    mask_N : bool, real tokens
    granularity : rows of the choice are tokens, sequences (B rows) or the batch (one row)
    logits_NE : before noise and bias; None for routers without
    probs_NE : what P means in losses and entropies
    weights : what ``w`` promises, for traces and their checks
    stats : detached counts by name, summed over micro-batches and ranks before ``Router.commit``
    extra : router-private tensors (prototypes, codes, a transport plan)
    """

    choice: TokenChoice | ExpertChoice | Dense | None
    n_experts: int
    shape: tuple[int, int]
    mask_N: Tensor
    branches: tuple[Branch, ...] = ()
    granularity: Granularity = "token"
    logits_NE: Tensor | None = None
    probs_NE: Tensor | None = None
    weights: Weights = "unnormalised"
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def choices(self) -> tuple[TokenChoice | ExpertChoice | Dense, ...]:
        """The primary form, or that of every branch."""
        if self.choice is not None:
            return (self.choice,)
        return tuple(branch.choice for branch in self.branches)


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterOutput:
    """A decision, its auxiliary losses, and state to hand on.

    ``new_state`` holds what the next step's decisions depend on, computed without writing to the
    router (see ``Router.commit``); ``cache`` is the updated cache of incremental decoding.
    """

    decision: RoutingDecision
    aux: Mapping[str, AuxTerm] = field(default_factory=dict)
    carry: Carry = field(default_factory=dict)
    new_state: Mapping[str, Tensor] = field(default_factory=dict)
    cache: Any = None


def without_halves(fn: Callable[[Tensor], Tensor], kept: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what ``Module._apply`` is given, but for one tensor without half precision."""

    def moved(tensor: Tensor) -> Tensor:
        made = fn(tensor)
        if tensor is not kept or made.element_size() >= torch.float32.itemsize:
            return made
        return tensor.to(made.device)

    return moved


class Router(nn.Module):
    """Base of all routers.

    Class attributes say what a model builder must know before the first call:

    causal_safe : the decision about a token depends on no later token
    needs : which optional fields of ``RouterInput`` it reads (``attn``, ``attn_out``, ``resid``,
        ``carry``, ``cond:label`` ...)
    per_token : changing one token changes no other token's decision
    remedy : what to do where a decoder refuses the router
    commit_every : the trainer calls ``commit`` once an optimiser ``step``, or after each
        micro-batch (``forward``) for state that must not wait
    """

    causal_safe: bool = True
    per_token: bool = True
    remedy: str = "choose a causal variant or another router"
    needs: frozenset[str] = frozenset()
    commit_every: Literal["step", "forward"] = "step"
    system: str = ""  # the card it belongs to, where that has another name
    shared_experts: int = 0  # experts every token runs besides the chosen ones, by this method

    def __init__(self, n_experts: int, kinds: tuple[ExpertKind, ...] | None = None) -> None:
        super().__init__()
        if n_experts < 1:
            raise UsageError(f"n_experts: expected at least 1, got {n_experts}")
        self.n_experts = n_experts
        ffn: ExpertKind = "ffn"
        self.kinds = kinds or (ffn,) * n_experts
        if len(self.kinds) != n_experts:
            raise UsageError(f"kinds: expected {n_experts} (the experts), got {len(self.kinds)}")

    def decide(self, inp: RouterInput) -> RouterOutput:
        """Return the decision for one layer. Never writes a buffer."""
        raise NotImplementedError

    def forward(self, inp: RouterInput) -> RouterOutput:
        return self.decide(inp)

    @torch.no_grad()
    def commit(self, stats: Mapping[str, Tensor], new_state: Mapping[str, Tensor]) -> None:
        """Advance the state, once per optimiser step (or micro-batch, see ``commit_every``).

        ``stats`` are those of the decisions summed over micro-batches and ranks, ``new_state`` the
        last one. The default keeps no state.
        """

    def init_cache(self, batch: int) -> Any:
        """Return an empty cache for incremental decoding of ``batch`` sequences, or None."""
        return None

    def router_flops(self, n_tokens: int) -> float:
        """Return multiply-adds x 2 of deciding about so many tokens (its matrix products)."""
        return sum(2.0 * p.numel() * n_tokens for p in self.parameters() if p.ndim == 2)

    @property
    def nominal_active(self) -> float:
        """Experts a token is expected to run, for sizing experts at equal compute."""
        return 1.0
