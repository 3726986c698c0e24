"""Queues before experts: who is served when an expert takes only so many tokens.

Axes: G groups of S tokens, N = G * S, K places, E experts, C slots per expert and group.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crossroads.core.errors import UsageError
from crossroads.moe.checks import check_known

Rounding = Literal["ceil", "floor", "round"]
Priority = Literal["position", "gate"]
Group = Literal["sequence", "batch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """How many tokens an expert takes of a group.

    Attributes
    ----------
    factor, eval_factor : C = S * K * factor / E; 1 leaves room for exactly balanced routing.
        ``eval_factor=math.inf`` loses nothing in evaluation, as a decoder must
    rounding : of that number; ``round`` goes to the even neighbour at a half
    multiple : C is rounded up to a multiple of this
    minimum : C is at least this
    priority : who comes first within a choice: ``position``, or ``gate`` (descending weight of the
        first choice, ties by position: batch priority routing of V-MoE)
    group : capacity is counted per ``sequence`` or over the ``batch``
    """

    factor: float
    eval_factor: float | None = None
    rounding: Rounding = "ceil"
    multiple: int = 1
    minimum: int = 1
    priority: Priority = "position"
    group: Group = "sequence"

    def __post_init__(self) -> None:
        for name, most in (("factor", sys.float_info.max), ("eval_factor", math.inf)):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            is_absent = name == "eval_factor" and value is None
            if not (is_absent or (is_number and 0 < value <= most)):
                raise UsageError(f"capacity {name}: expected a positive number, got {value!r}")
        check_known("capacity rounding", self.rounding, Rounding)
        check_known("capacity priority", self.priority, Priority)
        check_known("capacity group", self.group, Group)
        if self.multiple < 1 or self.minimum < 1:
            raise UsageError(
                "capacity multiple and minimum: expected at least 1, "
                f"got {self.multiple} and {self.minimum}"
            )

    def keeps_order(self, places: int) -> bool:
        """Return whether what a later token chooses never costs an earlier one its place.

        With one place a token that is a queue in order of position within the sequence; with more,
        first choices of later tokens go before. In evaluation a decoder also shows one token at a
        time, and only a queue that loses nobody serves that like the whole sequence.
        """
        in_order = places == 1 and self.priority == "position" and self.group == "sequence"
        return in_order and self.eval_factor == math.inf

    def slots(self, tokens: int, k: int, n_experts: int, *, training: bool) -> int:
        """Return C for a group of so many real tokens."""
        factor = self.factor if training or self.eval_factor is None else self.eval_factor
        if factor == math.inf:
            return max(tokens * k, self.minimum)
        # The product first: 0.1 * 3 / 0.3 would round to a slot more.
        exact = round(tokens * k * factor / n_experts, 9)
        rounded = {"ceil": math.ceil(exact), "floor": math.floor(exact), "round": round(exact)}
        wanted = max(rounded[self.rounding], self.minimum)
        return math.ceil(wanted / self.multiple) * self.multiple


def queue_positions(idx_GSK: Tensor, n_experts: int, priority_GS: Tensor | None = None) -> Tensor:
    """Return each place's position in its expert's queue, int64 (G, S, K); -1 at empty places.

    All first choices queue before all second choices; within a choice by position, or by
    descending ``priority_GS`` (ties by position). Places that will be dropped count too.
    """
    n_groups, size, k = idx_GSK.shape
    if priority_GS is None:
        order_GS = torch.arange(size, device=idx_GSK.device).expand(n_groups, size)
    else:
        order_GS = torch.argsort(priority_GS, dim=-1, descending=True, stable=True)
    index = order_GS.unsqueeze(-1).expand(-1, -1, k)
    # k-major: (G, K * S), first choices of everybody first.
    queued = idx_GSK.gather(1, index).transpose(1, 2).reshape(n_groups, k * size)
    waiting = torch.nn.functional.one_hot(queued.clamp_min(0), n_experts)
    waiting = waiting * (queued >= 0).unsqueeze(-1)
    ahead = (waiting.cumsum(1) - waiting).gather(2, queued.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    ahead = torch.where(queued >= 0, ahead, -1)
    back = ahead.reshape(n_groups, k, size).transpose(1, 2)
    return torch.empty_like(back).scatter_(1, index, back)


def overflow(
    idx_GSK: Tensor,
    mask_GS: Tensor,
    n_experts: int,
    capacity: Capacity,
    *,
    training: bool,
    priority_GS: Tensor | None = None,
    unlimited_E: Tensor | None = None,
) -> Tensor:
    """Return which places are lost to capacity, bool (G, S, K).

    ``unlimited_E`` marks experts without a queue (null experts occupy nobody's capacity).
    """
    place_GSK = queue_positions(idx_GSK, n_experts, priority_GS)
    k = idx_GSK.shape[-1]
    room_G = torch.tensor(
        [
            capacity.slots(int(real), k, n_experts, training=training)
            for real in mask_GS.sum(1).tolist()
        ],
        device=idx_GSK.device,
    )
    dropped = place_GSK >= room_G[:, None, None]
    if unlimited_E is not None:
        dropped &= ~unlimited_E[idx_GSK.clamp_min(0)]
    return dropped & (idx_GSK >= 0)
