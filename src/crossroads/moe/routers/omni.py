"""Omni-router: all routed layers of a model share one router, their experts stay their own.

    p_l = softmax(W x_l [+ b]),  e = argmax p_l,  y = p_l,e f_(l,e)(x_l)

so that an expert's number means the same at every depth. Inputs differ by layer, so choices may.
Source: Omni-Router: Sharing Routing Decisions in Sparse Mixture-of-Experts for Speech Recognition
(2025), section 3. Choices made here: Gaussian noise of standard deviation 0.1 on the logits in
training serves choice, weight and balance loss alike; no bias unless asked for, so that Switch
differs in the sharing alone.

The router keeps nothing of a layer: whoever builds the model makes one object per group of
layers (``sharing_groups``), hands it to each of them and registers it once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from crossroads.core.errors import UsageError
from crossroads.moe.router import TokenChoiceRouter


@dataclass(frozen=True, kw_only=True, slots=True)
class SharingGroup:
    """Routed layers (counted from 0 among the routed ones) that share a router."""

    layers: range
    n_experts: int


class OmniRouter(TokenChoiceRouter):
    """Switch routing whose one gate serves every layer of a group.

    Parameters
    ----------
    d, n_experts : width of the tokens, number of experts; equal in all layers of a group
    k : experts per token
    share : ``all`` layers, or a plan such as ``4x2-4x4``: four layers of 2 experts share one
        router, the next four of 4 experts another
    noise_std, settings : of ``TokenChoiceRouter``

    Raises UsageError for a plan that cannot be read.
    """

    name = "omni"
    shared_across_layers: ClassVar[bool] = True

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        k: int = 1,
        share: str = "all",
        noise_std: float = 0.1,
        **settings: Any,
    ) -> None:
        if share != "all":
            _parsed(share)
        super().__init__(
            d,
            n_experts,
            k=k,
            noise_std=noise_std,
            **settings,
        )
        self.share = share


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
    for count, experts in _parsed(share):
        groups.append(SharingGroup(layers=range(start, start + count), n_experts=experts))
        start += count
    if start != n_layers:
        raise UsageError(f"share {share!r}: covers {start} layers, the model routes {n_layers}")
    return tuple(groups)


def _parsed(share: str) -> list[tuple[int, int]]:
    parts = [re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", part) for part in share.split("-")]
    if not all(parts):
        raise UsageError(
            f"share: expected all or a plan such as 4x2-4x4 (layers x experts), got {share!r}"
        )
    return [(int(part[1]), int(part[2])) for part in parts if part]
