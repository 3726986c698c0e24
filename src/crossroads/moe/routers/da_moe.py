"""DA-MoE: tokens that receive more attention get more experts.

    I_j = attention that token j receives, over the sequence's maximum, in (0, 1]
    K_j = clip(ceil(I_j E), 1, K_max)
    y_j = sum of p_e f_e(x_j) over the K_j largest of p = softmax(W x_j)

Source: DA-MoE: Towards Dynamic Expert Allocation for Mixture-of-Experts Models (2024). The paper
leaves open how heads and queries are reduced and how importance is normalised: all are settings.
No gradient reaches the attention, since K is a step function of it.

Received attention depends on later queries, and a sequence's maximum on all of it, so a decoder
needs one of the two causal forms: ``self``, the attention of a token to itself, or ``entropy``, the
entropy of its own row over its largest possible value.

Axes: B sequences, H heads, Q queries, T keys (positions), N = B * T tokens, E experts, K places.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from crossroads.core import gating, losses
from crossroads.core.errors import InputError, UsageError
from crossroads.moe.capacity import Capacity
from crossroads.moe.contract import NOBODY, RouterInput
from crossroads.moe.router import TokenChoiceRouter

Importance = Literal["received", "self", "entropy"]
HeadReduction = Literal["mean", "max"]
QueryReduction = Literal["mean", "sum"]
Scaling = Literal["max", "minmax"]
ROUNDING = 1e-6  # keeps an importance of 3/8 + rounding from asking for a fourth expert of eight


class DAMoE(TokenChoiceRouter):
    """Top-K_j of a softmax, K_j read from the attention of the same layer.

    ``cond["doc_id"]`` separates packed sequences, ``cond["pos"]`` gives true positions,
    ``cond["special"]`` (bool) marks separators and the like: attention sinks that get one expert
    and are left out of the maximum.

    Raises UsageError for settings out of range; ``decide`` raises InputError without attention, or
    with one that is NaN, infinite or negative, and UsageError in a decoder unless ``importance`` is
    causal.

    Parameters
    ----------
    d, n_experts : width of the tokens, number of experts
    k_max : most experts of a token; None = E. Near-uniform attention gives every token that many
    importance : ``received``, or for decoders ``self`` or ``entropy``
    heads : reduction over heads
    queries : reduction over the real queries that may see the token (``received`` only)
    normalise : ``max``, or ``minmax`` over the sequence (``received`` only)
    capacity : with ``priority="gate"`` important tokens queue first
    renorm, noise_std, balance, f_norm, z_loss : as in ``TokenChoiceRouter``
    """

    name = "da-moe"
    needs = frozenset({"attn"})
    causal_safe = False
    per_token = False

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        k_max: int | None = None,
        importance: Importance = "received",
        heads: HeadReduction = "mean",
        queries: QueryReduction = "mean",
        normalise: Scaling = "max",
        renorm: bool | None = None,
        noise_std: float = 0.0,
        balance: float = 0.01,
        f_norm: losses.Normalisation = "picks",
        z_loss: float = 0.0,
        capacity: Capacity | float | None = None,
    ) -> None:
        if k_max is not None and not 1 <= k_max <= n_experts:
            raise UsageError(f"k_max: expected 1 to {n_experts} (the experts), got {k_max}")
        for setting, value, known in (
            ("importance", importance, Importance),
            ("heads", heads, HeadReduction),
            ("queries", queries, QueryReduction),
            ("normalise", normalise, Scaling),
        ):
            if value not in get_args(known):
                raise UsageError(f"{setting}: expected one of {get_args(known)}, got {value!r}")
        self.causal_safe = importance != "received"  # a capacity may yet forbid it
        super().__init__(
            d,
            n_experts,
            k=n_experts if k_max is None else k_max,
            renorm=renorm,
            noise_std=noise_std,
            balance=balance,
            f_norm=f_norm,
            z_loss=z_loss,
            capacity=capacity,
        )
        if importance == "received":  # before a capacity's: without this, that one does not help
            self.remedy = "set importance to self or entropy"
        self.source: Importance = importance
        self.heads: HeadReduction = heads
        self.queries: QueryReduction = queries
        self.scaling: Scaling = normalise

    def importance(self, inp: RouterInput) -> Tensor:
        """Return how much each token matters, in [0, 1], shape (B, T), detached; 0 at padding."""
        attn = _attention(inp)
        if inp.causal and not self.causal_safe:
            raise UsageError(
                "router da-moe: received attention leaks the future of a decoder; "
                "set importance to 'self' or 'entropy'"
            )
        if self.source == "received":
            value_BT = self._received(attn, inp)
        elif self.source == "self":
            value_BT = self._over_heads(_own_columns(attn))
        else:
            value_BT = self._over_heads(_relative_entropy(attn, inp))
        return torch.where(inp.mask_BT, value_BT, torch.zeros_like(value_BT))

    def _received(self, attn_BHQT: Tensor, inp: RouterInput) -> Tensor:
        if attn_BHQT.shape[2] != attn_BHQT.shape[3]:
            raise InputError(
                f"attn: expected as many queries as keys, got {tuple(attn_BHQT.shape[2:])}; "
                "received attention needs the whole sequence at once"
            )
        kept_BHT, readers_BT = _column_sums(attn_BHQT, inp)
        if self.queries == "mean":
            kept_BHT = kept_BHT / readers_BT.clamp_min(1).unsqueeze(1)
        return self._scaled(self._over_heads(kept_BHT), inp)

    def _scaled(self, value_BT: Tensor, inp: RouterInput) -> Tensor:
        """Return importance relative to the others of the document, in [0, 1]."""
        special_BT = inp.cond.get("special", torch.zeros_like(inp.mask_BT)).bool()
        rivals_BRT = (inp.mask_BT & ~special_BT).unsqueeze(1)  # R = 1 where all have the same
        if "doc_id" in inp.cond:
            rivals_BRT = rivals_BRT & _same_document(inp)
        rows_BRT = value_BT.unsqueeze(1).expand_as(rivals_BRT)
        high_BR = rows_BRT.masked_fill(~rivals_BRT, 0.0).amax(-1)
        low_BR = torch.zeros_like(high_BR)
        if self.scaling == "minmax":
            low_BR = rows_BRT.masked_fill(~rivals_BRT, torch.inf).amin(-1).minimum(high_BR)
        spread_BR = high_BR - low_BR
        is_even_BR = spread_BR <= torch.finfo(spread_BR.dtype).eps * high_BR
        scaled_BT = (value_BT - low_BR) / spread_BR.masked_fill(is_even_BR, 1.0)
        scaled_BT = torch.where(is_even_BR, 1.0, scaled_BT).clamp(0.0, 1.0)
        return scaled_BT.masked_fill(special_BT, 0.0)

    def _over_heads(self, value_BHT: Tensor) -> Tensor:
        return value_BHT.mean(1) if self.heads == "mean" else value_BHT.amax(1)

    def experts_per_token(self, inp: RouterInput) -> Tensor:
        """Return K_j of every token, int64 (B, T), at least 1."""
        wanted_BT = torch.ceil(self.importance(inp) * self.n_experts - ROUNDING)
        return wanted_BT.clamp(1, self.k).to(torch.int64)

    def select(self, probs_NE: Tensor, logits_NE: Tensor, inp: RouterInput) -> Tensor:
        wanted_N1 = self.experts_per_token(inp).reshape(-1, 1)
        place_K = torch.arange(self.k, device=logits_NE.device)
        return torch.where(place_K < wanted_N1, gating.top_k(logits_NE, self.k), NOBODY)

    def priority(self, w_NK: Tensor, inp: RouterInput) -> Tensor:
        return self.importance(inp).reshape(-1)

    @property
    def nominal_active(self) -> float:
        """Experts per token if importance were uniform on (0, 1]."""
        return sum(min(m, self.k) for m in range(1, self.n_experts + 1)) / self.n_experts


def _attention(inp: RouterInput) -> Tensor:
    """Return the layer's attention, detached. Raises InputError when it is missing or misshapen."""
    if inp.attn is None:
        raise InputError(
            "attn: router da-moe reads the attention of its layer and got None; "
            "use a block with explicit attention"
        )
    attn = gating.at_least_float32(inp.attn.detach())
    if attn.ndim != 4 or (attn.shape[0], attn.shape[2]) != tuple(inp.mask_BT.shape):
        raise InputError(
            f"attn: expected shape ({inp.mask_BT.shape[0]}, heads, {inp.mask_BT.shape[1]}, keys), "
            f"got {tuple(attn.shape)}"
        )
    low, high = attn.aminmax()  # of all, since it costs no copy; padding is told apart after
    if not 0 <= float(low) <= float(high) < math.inf:
        seen_BT1 = inp.mask_BT.unsqueeze(2)
        seen_BQK = seen_BT1 & seen_BT1.mT if attn.shape[2] == attn.shape[3] else seen_BT1
        real = attn.masked_fill(~seen_BQK.unsqueeze(1), 0.0)  # padding may hold anything
        if not bool((torch.isfinite(real) & (real >= 0)).all()):
            raise InputError(
                f"attn: expected probabilities at real tokens, got {_first_wrong(real)}; "
                "check the block's attention for NaN"
            )
    return attn


def _first_wrong(attn: Tensor) -> float:
    return float(attn[~(torch.isfinite(attn) & (attn >= 0))][0])


def _same_document(inp: RouterInput) -> Tensor:
    """Return which query and key share a packed document, (B, T, T); all without ``doc_id``."""
    if "doc_id" not in inp.cond:
        batch, length = inp.mask_BT.shape
        return torch.ones(batch, length, length, dtype=torch.bool, device=inp.mask_BT.device)
    doc_BT = inp.cond["doc_id"]
    return doc_BT.unsqueeze(1) == doc_BT.unsqueeze(2)


def _column_sums(attn_BHQT: Tensor, inp: RouterInput) -> tuple[Tensor, Tensor]:
    """Return the attention each token receives, (B, H, T), and how many real queries may see it."""
    batch, _, _, length = attn_BHQT.shape
    if "doc_id" not in inp.cond and bool(inp.mask_BT.all()):
        return attn_BHQT.sum(2), torch.full((batch, length), length, device=attn_BHQT.device)
    sees_BQT = _same_document(inp) & inp.mask_BT.unsqueeze(1) & inp.mask_BT.unsqueeze(2)
    # where() and not a product: rows of padded queries may hold NaN.
    kept = torch.where(sees_BQT.unsqueeze(1), attn_BHQT, torch.zeros_like(attn_BHQT))
    return kept.sum(2), sees_BQT.sum(1)


def _own_columns(attn_BHQT: Tensor) -> Tensor:
    """Return the attention of each query to itself, (B, H, Q); queries are the last of the keys."""
    earlier = attn_BHQT.shape[3] - attn_BHQT.shape[2]
    return torch.diagonal(attn_BHQT, offset=earlier, dim1=2, dim2=3)


def _relative_entropy(attn_BHQT: Tensor, inp: RouterInput) -> Tensor:
    """Return each row's entropy over the log of the keys it may see, (B, H, Q); 1 for one key."""
    seen_BQ = _visible_keys(inp, attn_BHQT.shape[3] - attn_BHQT.shape[2])
    log_seen = seen_BQ.clamp_min(2).to(attn_BHQT.dtype).log()
    share = gating.entropy(attn_BHQT) / log_seen.unsqueeze(1)
    return torch.where((seen_BQ <= 1).unsqueeze(1), torch.ones_like(share), share)


def _visible_keys(inp: RouterInput, earlier: int) -> Tensor:
    """Return how many keys each query may see, itself included, (B, Q)."""
    sees_BQT = _same_document(inp) & inp.mask_BT.unsqueeze(1)
    if not inp.causal:
        return sees_BQT.sum(-1) + earlier
    if "pos" in inp.cond:
        return inp.cond["pos"] + 1
    return torch.tril(sees_BQT).sum(-1) + earlier
