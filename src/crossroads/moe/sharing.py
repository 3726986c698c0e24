"""Which routed layers of a model use one router object, and how many experts each of them has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crossroads.core.errors import UsageError
from crossroads.moe.routers import known_settings, parse_router, router_class


@dataclass(frozen=True, kw_only=True, slots=True)
class SharingGroup:
    """Routed layers (counted from 0 among the routed ones) that share a router."""

    layers: range
    n_experts: int


def sharing_groups(share: str, n_layers: int, n_experts: int) -> tuple[SharingGroup, ...]:
    """Return which routed layers share a router, and how many experts each of them has.

    ``all`` layers have ``n_experts``; a plan names its own numbers.

    >>> [(list(g.layers), g.n_experts) for g in sharing_groups("2x2-1x4", 3, 8)]
    [([0, 1], 2), ([2], 4)]

    Raises UsageError when the plan cannot be read or does not cover ``n_layers`` layers.
    """
    if share == "all":
        return (SharingGroup(layers=range(n_layers), n_experts=n_experts),)
    groups: list[SharingGroup] = []
    start = 0
    for count, experts in parse_plan(share):
        groups.append(SharingGroup(layers=range(start, start + count), n_experts=experts))
        start += count
    if start != n_layers:
        raise UsageError(f"share {share!r}: covers {start} layers, the model routes {n_layers}")
    return tuple(groups)


def is_shared(router: str) -> bool:
    """Return whether a router of this name serves several layers."""
    return bool(getattr(router_class(parse_router(router)[0]), "shared_across_layers", False))


def routers_of_layers(
    router: str, settings: Mapping[str, Any] | None, n_layers: int, n_experts: int
) -> list[tuple[int, SharingGroup]]:
    """Return for every routed layer the number of its router and the layers that router serves.

    What the text of ``router`` says of ``share`` wins over ``settings``. Raises UsageError as
    ``sharing_groups`` does.
    """
    if not is_shared(router):
        alone = [SharingGroup(layers=range(i, i + 1), n_experts=n_experts) for i in range(n_layers)]
        return list(enumerate(alone))
    name, given = parse_router(router)
    default = known_settings(router_class(name)).get("share", "all")
    plan = {"share": default, **(settings or {}), **given}["share"]
    groups = sharing_groups(str(plan), n_layers, n_experts)
    return [(number, group) for number, group in enumerate(groups) for _ in group.layers]


def parse_plan(share: str) -> list[tuple[int, int]]:
    """Return (layers, experts) of every group of a plan. Raises UsageError."""
    parts = [re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", part) for part in share.split("-")]
    if not all(parts):
        raise UsageError(
            f"share: expected all or a plan such as 4x2-4x4 (layers x experts), got {share!r}"
        )
    return [(int(part[1]), int(part[2])) for part in parts if part]
