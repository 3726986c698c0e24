"""A small routed sublayer for tests of backbones, with everything a real one may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.core.routed import (
    AuxTerm,
    Carry,
    RouteContext,
    SublayerFactory,
    SublayerOutput,
    mask_of,
)


@dataclass(frozen=True)
class Picked:
    """Which expert every token got, for records."""

    expert_BT: Tensor


class ToyMixture(nn.Module):
    """Top-1 of two linear experts, with noise in training, an auxiliary loss and a carry.

    Routing depends on the scores of the layer before (carry), on the attention received where
    ``needs`` asks for it, and, with ``recurrent``, on a running sum over positions (cache).
    """

    is_routed = True

    def __init__(
        self,
        layer: int,
        width: int,
        norm: nn.Module | None,
        needs: frozenset[str] = frozenset(),
        recurrent: bool = False,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.needs = needs
        self.recurrent = recurrent
        self.norm = norm if norm is not None else nn.Identity()
        self.router = nn.Linear(width, 2, bias=False)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.calls = 0

    def init_cache(self, batch_size: int) -> Tensor | None:
        return torch.zeros(batch_size, 2) if self.recurrent else None

    def forward(
        self,
        h_BTD: Tensor,
        context: RouteContext,
        *,
        attn: Tensor | None = None,
        attn_out: Tensor | None = None,
        carry: Carry | None = None,
        cache: Any = None,
    ) -> SublayerOutput:
        self.calls += 1
        x_BTD = self.norm(h_BTD)
        logits_BTE = self.router(x_BTD)
        if context.training:
            draws = torch.Generator().manual_seed(context.seed + 31 * self.layer)
            logits_BTE = logits_BTE + torch.randn(logits_BTE.shape, generator=draws)
        if carry:
            logits_BTE = logits_BTE + carry["scores"]
        if self.recurrent:
            start_BE = 0.0 if cache is None else cache
            total_BTE = logits_BTE.cumsum(1) + (start_BE if cache is None else cache[:, None])
            cache = total_BTE[:, -1]
            logits_BTE = total_BTE
        if "attn" in self.needs:
            assert attn is not None
            logits_BTE = logits_BTE * attn.mean(1).square().sum(-1, keepdim=True)
        if "attn_out" in self.needs:
            assert attn_out is not None
            logits_BTE = logits_BTE + attn_out.mean(-1, keepdim=True)
        weight_BTE = logits_BTE.softmax(-1)
        expert_BT = weight_BTE.argmax(-1)
        done = torch.stack([expert(x_BTD) for expert in self.experts], dim=2)
        one_BTE = nn.functional.one_hot(expert_BT, 2) * weight_BTE
        real_BT = mask_of(h_BTD, context.mask_BT)
        delta = (done * (one_BTE * real_BT[:, :, None])[..., None]).sum(2)
        aux = {"balance": AuxTerm(weight_BTE[real_BT].mean(0).square().sum(), 0.1)}
        return SublayerOutput(
            delta=delta,
            aux=aux,
            carry={"scores": logits_BTE},
            decisions=(Picked(expert_BT),),
            flops=float(real_BT.sum()),
            cache=cache,
        )


def toy_mixtures(
    *, needs: frozenset[str] = frozenset(), recurrent: bool = False
) -> SublayerFactory:
    """Return the factory of toys for every layer."""

    def make(layer: int, width: int, norm: nn.Module | None) -> nn.Module:
        return ToyMixture(layer, width, norm, needs, recurrent)

    return make
