"""Layers, streams and calls for the tests that every router must pass."""

from __future__ import annotations

from typing import Any

import torch

from crossroads.core.routed import RouteContext, SublayerOutput
from crossroads.moe.contract import Router
from crossroads.moe.experts import FFNBank
from crossroads.moe.layer import MoELayer
from crossroads.moe.routers import build_router, known_settings, router_names

Tensor = torch.Tensor
BATCH, LENGTH, WIDTH, EXPERTS, HIDDEN = 3, 10, 16, 5, 12
NAMES = router_names()


def build(name: str, *, seed: int = 0, n_experts: int = EXPERTS, **settings: Any) -> MoELayer:
    """Return a layer with the router's own defaults, as far as ``n_experts`` allows them."""
    torch.manual_seed(seed)
    router = build_router(name, WIDTH, n_experts, **settings)
    return MoELayer(router, FFNBank(WIDTH, HIDDEN, router.kinds))


def stream(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, LENGTH, WIDTH, generator=generator).to(dtype)


def some_padding() -> Tensor:
    """Lengths 10, 7 (padded right) and 4 (padded left)."""
    mask_BT = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    mask_BT[1, 7:] = False
    mask_BT[2, :6] = False
    return mask_BT


def side_information(length: int = LENGTH) -> dict[str, Tensor]:
    """Everything any router may ask for; values repeat over the batch rows in a fixed way."""
    place_T = torch.arange(length)
    row_B1 = torch.arange(BATCH).unsqueeze(1)
    return {
        "token_id": (7 * place_T + 3 * row_B1) % 11,
        "pos": place_T.expand(BATCH, length),
        "label": torch.arange(BATCH),
        "null": torch.tensor([False, True, False]),
    }


def context(**fields: Any) -> RouteContext:
    return RouteContext(**{"cond": side_information(), "seed": 5, **fields})


def block_tensors(needs: frozenset[str], h_BTD: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """Return what a block hands over besides the stream, made up but a fixed function of place."""
    extra: dict[str, Tensor] = {}
    batch, length, _ = h_BTD.shape
    if "attn" in needs:
        place_T = torch.arange(length, dtype=h_BTD.dtype)
        wish_TT = torch.sin(1.7 * place_T[:, None] + 0.9 * place_T[None, :])
        wish = wish_TT.expand(batch, 2, length, length)
        hidden = ~mask_BT[:, None, None, :]
        extra["attn"] = torch.softmax(wish.masked_fill(hidden, -1e9), -1).masked_fill(hidden, 0.0)
    if "attn_out" in needs:
        extra["attn_out"] = 0.5 * h_BTD
    return extra


def run(layer: MoELayer, h_BTD: Tensor, given: RouteContext | None = None) -> SublayerOutput:
    given = context() if given is None else given
    mask_BT = given.mask_BT
    if mask_BT is None:
        mask_BT = torch.ones(h_BTD.shape[:2], dtype=torch.bool)
    return layer(h_BTD, given, **block_tensors(layer.needs, h_BTD, mask_BT))


def of(router: Router, setting: str) -> bool:
    return setting in known_settings(type(router))
