"""The parts that every backbone is made of: feed-forwards, attention, blocks, and one pass.

A block is ``h = h + attn(norm(h))`` followed by ``h = h + delta`` with ``delta`` from the layer's
sublayer, dense or routed (see ``crossroads.core.routed``). A sublayer that asks for the attention
probabilities of its layer gets them; the block then computes attention explicitly instead of
through the fused kernel.

Axes: B sequences, T positions (queries), S positions (keys), D width, H heads, P width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from crossroads.core.errors import UsageError
from crossroads.core.routed import Collector, Dense, RouteContext, SublayerFactory

ROPE_BASE = 10_000.0
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
}


def check_sizes(**sizes: int) -> None:
    """Raise UsageError for the first size that is not a positive whole number."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UsageError(f"{name}: expected a whole number of at least 1, got {size!r}")


def check_heads(width: int, num_heads: int, *, rotary: bool = False) -> None:
    """Raise UsageError unless ``width`` divides into heads, of even width where they rotate."""
    check_sizes(width=width, num_heads=num_heads)
    if width % num_heads:
        raise UsageError(f"num_heads: expected a divisor of width {width}, got {num_heads}")
    if rotary and (width // num_heads) % 2:
        raise UsageError(
            f"num_heads: rotary positions need heads of even width, got {width // num_heads}; "
            "change width or num_heads"
        )


class MLP(nn.Module):
    """Two-matrix feed-forward ``W2 act(W1 x + b1) + b2``, maps (..., D) to (..., D).

    Parameters
    ----------
    width, hidden : D and the number of hidden units
    activation : "gelu", "gelu_tanh" or "relu"
    """

    def __init__(self, width: int, hidden: int, activation: str = "gelu") -> None:
        super().__init__()
        check_sizes(width=width, hidden=hidden)
        self.up = nn.Linear(width, hidden)
        self.activation = ACTIVATIONS[activation]()
        self.down = nn.Linear(hidden, width)
        self.flops_per_token = 4.0 * width * hidden

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.down(self.activation(self.up(x)))
        return answer


class SwiGLU(nn.Module):
    """Gated feed-forward ``W_down (silu(W_gate x) * W_up x)`` without biases (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        check_sizes(width=width, hidden=hidden)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.flops_per_token = 6.0 * width * hidden

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return answer


def dense_mlp(hidden: int, activation: str = "gelu") -> SublayerFactory:
    """Return the factory of dense ``MLP`` sublayers, for every layer alike."""

    def make(layer: int, width: int, norm: nn.Module | None) -> nn.Module:
        ffn = MLP(width, hidden, activation)
        return Dense(ffn, norm, ffn.flops_per_token)

    return make


def dense_swiglu(hidden: int) -> SublayerFactory:
    """Return the factory of dense ``SwiGLU`` sublayers, for every layer alike."""

    def make(layer: int, width: int, norm: nn.Module | None) -> nn.Module:
        ffn = SwiGLU(width, hidden)
        return Dense(ffn, norm, ffn.flops_per_token)

    return make


@dataclass(frozen=True, kw_only=True, slots=True)
class Visibility:
    """Which keys each query may look at.

    Attributes
    ----------
    allowed_BTS : bool, (B, T, S); None = every key, or every earlier one when ``causal``. Every
        query sees at least itself, so that no softmax is empty
    causal : only read without ``allowed_BTS``; queries and keys are then the same positions
    real_BT : queries that are not padding; None = all. Attention of the others is zero
    """

    allowed_BTS: Tensor | None = None
    causal: bool = False
    real_BT: Tensor | None = None


def visibility(
    real_BS: Tensor,
    num_queries: int,
    *,
    causal: bool,
    doc_BS: Tensor | None = None,
) -> Visibility:
    """Return what the last ``num_queries`` of S positions may look at.

    Parameters
    ----------
    real_BS : bool, True = real token
    causal : only positions up to its own
    doc_BS : only positions of the same document (packed sequences: block-diagonal)
    """
    num_keys = real_BS.shape[1]
    past = num_keys - num_queries
    padded = not bool(real_BS.all())
    if not padded and doc_BS is None and (not causal or past == 0 or num_queries == 1):
        return Visibility(causal=causal and past == 0)
    key_S = torch.arange(num_keys, device=real_BS.device)
    query_T = key_S[past:]
    allowed_BTS = real_BS[:, None, :].expand(-1, num_queries, -1)
    if causal:
        allowed_BTS = allowed_BTS & (key_S <= query_T[:, None])
    if doc_BS is not None:
        allowed_BTS = allowed_BTS & (doc_BS[:, past:, None] == doc_BS[:, None, :])
    real_BT = real_BS[:, past:]
    own = key_S == query_T[:, None]
    # A padded query sees itself and nothing else: no empty softmax, and nothing leaks from it.
    allowed_BTS = (allowed_BTS & real_BT[:, :, None]) | own
    return Visibility(allowed_BTS=allowed_BTS, real_BT=real_BT if padded else None)


def rotation(pos_BT: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (B, 1, T, P/2) of rotary positions (Su et al. 2021), base 10000."""
    index = torch.arange(0, head_width, 2, device=pos_BT.device, dtype=torch.float32)
    angle = pos_BT[:, None, :, None].float() * ROPE_BASE ** (-index / head_width)
    return angle.cos(), angle.sin()


def rotate(x_BHTP: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (i, i + P/2) of every head by the angles of its position."""
    cos, sin = (part.to(x_BHTP.dtype) for part in turn)
    first, second = x_BHTP.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attended:
    """What attention returns.

    Attributes
    ----------
    out_BTD : after the output projection
    probs_BHTS : rows sum to 1 over the keys in sight, zero rows for padded queries, float32 at
        least; None unless asked for
    keys_BHSP, values_BHSP : of all positions so far, for incremental decoding
    """

    out_BTD: Tensor
    probs_BHTS: Tensor | None
    keys_BHSP: Tensor
    values_BHSP: Tensor


class Attention(nn.Module):
    """Multi-head self-attention.

    Parameters
    ----------
    width, num_heads : D and H; H divides D
    bias : whether the projections have biases
    """

    def __init__(self, width: int, num_heads: int, *, bias: bool) -> None:
        super().__init__()
        check_heads(width, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        x_BTD: Tensor,
        sight: Visibility,
        *,
        explicit: bool = False,
        turn: tuple[Tensor, Tensor] | None = None,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> Attended:
        """Attend.

        Parameters
        ----------
        explicit : compute and return the probabilities
        turn : cosines and sines of rotary positions of the T queries
        past : keys and values (B, H, S - T, P) of earlier positions
        """
        B, T, D = x_BTD.shape
        shaped = self.qkv(x_BTD).view(B, T, 3, self.num_heads, D // self.num_heads)
        q_BHTP, k_BHSP, v_BHSP = shaped.permute(2, 0, 3, 1, 4)
        if turn is not None:
            q_BHTP, k_BHSP = rotate(q_BHTP, turn), rotate(k_BHSP, turn)
        if past is not None:
            k_BHSP = torch.cat((past[0], k_BHSP), dim=2)
            v_BHSP = torch.cat((past[1], v_BHSP), dim=2)
        probs_BHTS = None
        if explicit:
            probs_BHTS = _probabilities(q_BHTP, k_BHSP, sight)
            mixed_BHTP = probs_BHTS.to(v_BHSP.dtype) @ v_BHSP
        else:
            mixed_BHTP = _fused(q_BHTP, k_BHSP, v_BHSP, sight)
        out_BTD = self.out(mixed_BHTP.transpose(1, 2).reshape(B, T, D))
        return Attended(
            out_BTD=out_BTD, probs_BHTS=probs_BHTS, keys_BHSP=k_BHSP, values_BHSP=v_BHSP
        )


def _probabilities(q_BHTP: Tensor, k_BHSP: Tensor, sight: Visibility) -> Tensor:
    scores_BHTS = q_BHTP @ k_BHSP.transpose(-1, -2) / math.sqrt(q_BHTP.shape[-1])
    if scores_BHTS.dtype in (torch.float16, torch.bfloat16):
        scores_BHTS = scores_BHTS.float()  # a softmax in half precision does not sum to 1
    if sight.allowed_BTS is not None:
        scores_BHTS = scores_BHTS.masked_fill(~sight.allowed_BTS[:, None], -torch.inf)
    elif sight.causal:
        ahead = torch.ones(scores_BHTS.shape[-2:], dtype=torch.bool, device=q_BHTP.device).triu(1)
        scores_BHTS = scores_BHTS.masked_fill(ahead, -torch.inf)
    probs_BHTS = scores_BHTS.softmax(dim=-1)
    if sight.real_BT is not None:
        probs_BHTS = probs_BHTS.masked_fill(~sight.real_BT[:, None, :, None], 0.0)
    return probs_BHTS


def _fused(q_BHTP: Tensor, k_BHSP: Tensor, v_BHSP: Tensor, sight: Visibility) -> Tensor:
    mask = None if sight.allowed_BTS is None else sight.allowed_BTS[:, None]
    causal = mask is None and sight.causal
    mixed: Tensor = functional.scaled_dot_product_attention(
        q_BHTP, k_BHSP, v_BHSP, attn_mask=mask, is_causal=causal
    )
    if sight.real_BT is not None:
        mixed = mixed.masked_fill(~sight.real_BT[:, None, :, None], 0.0)
    return mixed


class Pass(Collector):
    """One forward pass: threads carry and records, and checkpoints activations on request.

    Under checkpointing a block runs a second time in the backward pass. Each run works on a
    branch that starts from the carry and the caches the block first saw, and only the first run's
    records are kept, so decisions, auxiliary losses and gradients are those of the plain run.

    Parameters
    ----------
    context, caches : as in ``Collector``
    recompute : run blocks under ``torch.utils.checkpoint``, where gradients are needed at all
    """

    def __init__(
        self,
        context: RouteContext,
        caches: Mapping[int, Any] | None = None,
        *,
        recompute: bool = False,
    ) -> None:
        super().__init__(context, caches)
        self.recompute = recompute and torch.is_grad_enabled()

    def run(self, block: nn.Module, *args: Any) -> Any:
        """Return ``block(routed, *args)`` with this pass, or a branch of it, as ``routed``."""
        if not self.recompute:
            return block(self, *args)
        start = self._branch()
        waiting = [self]

        def attempt(*inputs: Any) -> Any:
            branch = start._branch()
            answer = block(branch, *inputs)
            if waiting:  # popped, so that the graph does not keep the pass alive
                waiting.pop()._absorb(branch)
            return answer

        return checkpoint(attempt, *args, use_reentrant=False)

    def _branch(self) -> Pass:
        branch = Pass(self.context, self.caches)
        branch._carry = self._carry
        return branch

    def _absorb(self, branch: Pass) -> None:
        self.records += branch.records
        self.caches = branch.caches
        self.flops += branch.flops
        self._carry = branch._carry


class Block(nn.Module):
    """Pre-norm transformer block; its ``ffn`` is set by ``fill`` after all backbone parts exist.

    Parameters
    ----------
    layer : index of the block, 0-based
    norm : of the attention
    attention : the attention
    """

    ffn: nn.Module

    def __init__(self, layer: int, norm: nn.Module, attention: Attention) -> None:
        super().__init__()
        self.layer = layer
        self.norm = norm
        self.attention = attention

    def forward(
        self,
        routed: Collector,
        h_BTD: Tensor,
        sight: Visibility,
        turn: tuple[Tensor, Tensor] | None = None,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the stream after the block, and keys and values of all positions so far."""
        seen = self.attention(
            self.norm(h_BTD), sight, explicit=wants(self.ffn, "attn"), turn=turn, past=past
        )
        h_BTD = h_BTD + seen.out_BTD
        h_BTD = h_BTD + place(routed, self.layer, self.ffn, h_BTD, seen)
        return h_BTD, seen.keys_BHSP, seen.values_BHSP


def wants(sublayer: nn.Module, what: str) -> bool:
    """Return whether a sublayer asked its block for ``what``."""
    return what in sublayer.needs


def place(routed: Collector, layer: int, ffn: Any, h_BTD: Tensor, seen: Attended) -> Tensor:
    """Return the delta of a feed-forward place, handing over what its sublayer asked for.

    Raises UsageError for a delta that is no stream: pooled experts make heads, not blocks.
    """
    delta_BTD = routed(
        layer,
        ffn,
        h_BTD,
        attn=seen.probs_BHTS,
        attn_out=seen.out_BTD if wants(ffn, "attn_out") else None,
    )
    if delta_BTD.shape != h_BTD.shape:
        raise UsageError(
            f"sublayer of layer {layer}: expected a delta of shape {tuple(h_BTD.shape)}, got "
            f"{tuple(delta_BTD.shape)}; pooled experts cannot stand inside a block"
        )
    return delta_BTD


def fill(
    blocks: Sequence[nn.Module],
    factory: SublayerFactory,
    width: int,
    make_norm: Callable[[], nn.Module] | None,
) -> nn.ModuleDict:
    """Give every block the sublayer that ``factory`` makes for it, and return shared modules.

    Called after all other parameters of a model exist: whatever a factory draws, the backbone of
    a seed is the same in all arms of a comparison.

    A factory may carry an attribute ``shared``, a mapping from names to modules used by several
    layers (one router for all). The model registers those once, under ``shared.<name>``; layers
    keep unregistered references.
    """
    for layer, block in enumerate(blocks):
        block.ffn = factory(layer, width, make_norm() if make_norm is not None else None)
    return nn.ModuleDict(getattr(factory, "shared", {}))


def mean_over_real(h_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Return the mean over real positions, (B, D); zeros for a sequence without any."""
    if mask_BT is None:
        return h_BTD.mean(dim=1)
    real_BT1 = mask_BT[:, :, None].to(h_BTD.dtype)
    return (h_BTD * real_BT1).sum(dim=1) / real_BT1.sum(dim=1).clamp_min(1.0)
