"""Merges of experts that trim and elect single numbers, by PEFT's own functions.

What comes out is no weighting of the experts but one adapter for each layer. ``on="factors"`` works
on A and B apart, as PEFT's "ties" and "dare_linear" do, and needs equal ranks; ``on="delta"`` works
on the products and keeps the largest singular directions, as PEFT's "..._svd" do. Factors of
experts trained apart are known up to a rotation of their ranks only, which deltas do not notice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank, LoRA, ModuleBank
from crossroads.core.errors import InputError, MissingExtraError, UsageError, unknown_name

On = Literal["factors", "delta"]
Combination = Callable[[Sequence[Tensor], Tensor], Tensor]  # (tensors, a weight each) -> one


def peft_merges(router: str) -> Any:
    """Return PEFT's module of merge functions. Raises MissingExtraError."""
    try:
        from peft.utils import merge_utils
    except ImportError:
        raise MissingExtraError(f"router {router}: peft", extra="adapters") from None
    return merge_utils


def check_merge(
    router: str, *, on: str, density: float, rank: int, weight: float | None = None
) -> None:
    """Raise UsageError for an unknown place, for a density or a rank that cannot be, and for a
    weight that is no finite number. A weight of None is the router's own.
    """
    if on not in get_args(On):
        raise unknown_name(f"place that router {router} merges on", on, get_args(On))
    if not 0 < density <= 1:
        raise UsageError(
            f"router {router}: density: expected above 0 and at most 1, got {density}; it is the "
            "share of numbers that is kept, 1 keeps all"
        )
    if rank < 0:
        raise UsageError(
            f"router {router}: rank: expected 0 or more, got {rank}; 0 takes the experts' largest"
        )
    if weight is not None:
        check_weight(router, weight)


def check_weight(router: str, weight: object) -> None:
    """Raise UsageError for a weight that is no finite number."""
    if not (isinstance(weight, int | float) and math.isfinite(weight)):
        raise UsageError(f"router {router}: weight: expected a finite number, got {weight!r}")


def check_ready(router: str, bank: AdapterBank, *, on: str) -> None:
    """Check what merging will need, before a model is touched.

    Raises MissingExtraError where PEFT is not installed, InputError where factors have unequal
    ranks.
    """
    peft_merges(router)
    for layer in bank.layers.values() if on == "factors" else ():
        _check_ranks(f"router {router}", layer)


def _check_ranks(who: str, bank: ModuleBank) -> None:
    ranks = sorted({*bank.rank_E[bank.alive_E].tolist()})
    if len(ranks) > 1:
        raise InputError(
            f"{who}: merges factors of one rank, and they differ at {bank.name} ({ranks[0]} and "
            f"{ranks[-1]}); with :on=delta after its name it merges products of any ranks"
        )


def merge(
    bank: ModuleBank, combination: Combination, *, weight: float, on: str, rank: int = 0
) -> LoRA:
    """Return one adapter made of a layer's experts, each with the same weight.

    ``rank`` is that of the result on deltas, 0 = the experts' largest. Raises InputError where
    factors have unequal ranks.
    """
    found = [bank.lora(e) for e in range(bank.n_experts)]
    experts = [lora for lora in found if lora is not None]
    if on == "delta":
        weights_E = torch.full((len(experts),), weight)
        delta_OI = combination([lora.delta_OI() for lora in experts], weights_E)
        return _low_rank(delta_OI, rank or bank.rank)
    _check_ranks("merge", bank)
    scaled_E = torch.tensor([weight * lora.scale for lora in experts])
    root_E = scaled_E.abs().sqrt()
    return LoRA(
        a_RI=combination([lora.a_RI.float() for lora in experts], root_E * scaled_E.sign()),
        b_OR=combination([lora.b_OR.float() for lora in experts], root_E),
        scale=1.0,
    )


def _low_rank(delta_OI: Tensor, rank: int) -> LoRA:
    left_OS, sizes_S, right_SI = torch.linalg.svd(delta_OI, full_matrices=False)
    return LoRA(a_RI=right_SI[:rank], b_OR=left_OS[:, :rank] * sizes_S[:rank], scale=1.0)
