"""The parts that every backbone is made of: feed-forwards, blocks, and one forward pass.

A block is ``h = h + attn(norm(h))`` followed by ``h = h + delta`` with ``delta`` from the layer's
sublayer, dense or routed (see ``crossroads.core.routed``). A sublayer that asks for the attention
probabilities of its layer gets them.

Axes: B sequences, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from crossroads.core.errors import UsageError, unknown_name
from crossroads.core.routed import Collector, DenseSublayer, RouteContext, SublayerFactory
from crossroads.models.attention import Attended, Attention, Visibility
from crossroads.models.inputs import check_sizes

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


class MLP(nn.Module):
    """Two-matrix feed-forward ``W2 act(W1 x + b1) + b2``, maps (..., D) to (..., D).

    Parameters
    ----------
    width, hidden : D and the number of hidden units
    activation : "gelu", "gelu_tanh", "relu" or "silu"
    """

    def __init__(self, width: int, hidden: int, activation: str = "gelu") -> None:
        super().__init__()
        check_sizes(width=width, hidden=hidden)
        if activation not in ACTIVATIONS:
            raise unknown_name("activation", activation, ACTIVATIONS)
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
        return DenseSublayer(ffn, norm, ffn.flops_per_token)

    return make


def dense_swiglu(hidden: int) -> SublayerFactory:
    """Return the factory of dense ``SwiGLU`` sublayers, for every layer alike."""

    def make(layer: int, width: int, norm: nn.Module | None) -> nn.Module:
        ffn = SwiGLU(width, hidden)
        return DenseSublayer(ffn, norm, ffn.flops_per_token)

    return make


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
        self._flops += branch._flops
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
    keep unregistered references. Raises UsageError where its ``num_layers`` is not that of the
    model.
    """
    expected = getattr(factory, "num_layers", len(blocks))
    if expected != len(blocks):
        raise UsageError(
            f"num_layers: the factory of sublayers was made for {expected} layers, the model has "
            f"{len(blocks)}; give the factory that number"
        )
    for layer, block in enumerate(blocks):
        made: object = factory(layer, width, make_norm() if make_norm is not None else None)
        if not isinstance(made, nn.Module):
            raise UsageError(
                f"sublayer: the factory gave {made!r} for layer {layer}, expected a module"
            )
        block.ffn = made
    return nn.ModuleDict(getattr(factory, "shared", {}))


def mean_over_real(h_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Return the mean over real positions, (B, D); zeros for a sequence without any."""
    if mask_BT is None:
        return h_BTD.mean(dim=1)
    real_BT1 = mask_BT[:, :, None].to(h_BTD.dtype)
    return (h_BTD * real_BT1).sum(dim=1) / real_BT1.sum(dim=1).clamp_min(1.0)
