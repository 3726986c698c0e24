"""FlyLoRA adapters: frozen sparse random down-projections, made again from a seed.

An adapter of rank r is a bank of r experts of rank one with the common scale alpha / r; which of
them a token uses is decided by ``routers/flylora.py``. Source: FlyLoRA (NeurIPS 2025).

Axes: R ranks, I inputs, O outputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank, Expert, LoRA
from crossroads.core.errors import InputError, UsageError

Sizes = Mapping[str, tuple[int, int]]  # layer -> (inputs, outputs)


def sparse_projection(layer: str, inputs: int, *, ranks: int, nonzeros: int, seed: int) -> Tensor:
    """Return A (R, I): each row has ``nonzeros`` entries drawn from N(0, 1 / R^2), others are 0.

    A function of its arguments, so that a file needs the seed alone.
    """
    told = f"{layer} {inputs} {ranks} {nonzeros} {seed}".encode()
    key = int.from_bytes(hashlib.blake2b(told, digest_size=7).digest(), "big")
    generator = torch.Generator().manual_seed(key)
    places_RI = torch.rand(ranks, inputs, generator=generator).argsort(-1)[:, :nonzeros]
    values_RP = torch.randn(ranks, nonzeros, generator=generator) / ranks
    return torch.zeros(ranks, inputs).scatter(-1, places_RI, values_RP)


def fly_bank(
    sizes: Sizes,
    *,
    ranks: int = 32,
    k: int = 8,
    alpha: float | None = None,
    density: float | None = None,
    seed: int = 0,
    name: str = "fly",
) -> AdapterBank:
    """Return an untrained adapter: B = 0, A from the seed.

    ``alpha`` defaults to 2 * ranks; ``density`` of A to k / ranks. Train ``b_EOR`` alone. Raises
    UsageError where k is not between 1 and ``ranks`` or the density not in (0, 1].
    """
    if not 1 <= k <= ranks:
        raise UsageError(
            f"flylora: k is {k}, expected between 1 and {ranks}, the ranks; in a command name the "
            f"router as flylora:k={max(ranks // 4, 1)}"
        )
    share = k / ranks if density is None else density
    if not 0 < share <= 1:
        raise UsageError(
            f"flylora: density is {share}, expected above 0 and at most 1; without it, it is "
            f"k / ranks = {k / ranks:g}"
        )
    scale = (2 * ranks if alpha is None else alpha) / ranks
    projections = {
        layer: sparse_projection(
            layer, inputs, ranks=ranks, nonzeros=max(1, round(share * inputs)), seed=seed
        )
        for layer, (inputs, _) in sizes.items()
    }
    experts = []
    for rank in range(ranks):
        modules = {
            layer: LoRA(
                a_RI=projections[layer][rank : rank + 1],
                b_OR=torch.zeros(outputs, 1),
                scale=scale,
            )
            for layer, (_, outputs) in sizes.items()
        }
        info = {"flylora": {"seed": seed, "ranks": ranks, "k": k, "density": share}}
        experts.append(Expert(name=f"{name}-{rank}", modules=modules, info=info))
    return AdapterBank(experts)


def union(banks: Sequence[AdapterBank]) -> AdapterBank:
    """Return all adapters side by side; each keeps its own k ranks per token (``ranks`` of the
    router). Names must differ: give ``fly_bank`` one per task.
    """
    return AdapterBank([expert for bank in banks for expert in bank.experts()])


def delta_average(banks: Sequence[AdapterBank], name: str = "merged") -> Expert:
    """Return the average of the adapters' whole B A, as one dense LoRA of rank sum R.

    Deltas of different seeds hardly interfere: their projections are nearly orthogonal. Raises
    InputError for adapters of different layers or sizes, and for experts not of rank one.
    """
    _check_alike(banks)
    modules = {}
    for layer in banks[0].layers:
        a_RI = torch.cat([bank.layers[layer].a_ERI.detach()[:, 0] for bank in banks])
        b_OR = torch.cat([bank.layers[layer].b_EOR.detach()[:, :, 0].T for bank in banks], 1)
        scales = torch.cat([bank.layers[layer].scale_E for bank in banks])
        modules[layer] = LoRA(a_RI=a_RI, b_OR=b_OR * scales / len(banks), scale=1.0)
    return Expert(name=name, modules=modules)


def factor_average(banks: Sequence[AdapterBank], name: str = "merged") -> AdapterBank:
    """Return the average of A and of B separately, what the published script does.

    Sensible only where all adapters share the seed of A. Raises InputError for adapters of
    different layers, sizes or ranks, and for experts not of rank one.
    """
    _check_alike(banks)
    ranks = [bank.n_experts for bank in banks]
    if len(set(ranks)) > 1:
        raise InputError(
            f"flylora: expected adapters of as many ranks as the first, {ranks[0]}, got "
            f"{next(n for n in ranks if n != ranks[0])}; average their deltas instead"
        )
    experts = []
    for rank, expert in enumerate(banks[0].experts()):
        modules = {}
        for layer, lora in expert.modules.items():
            loras = [bank.layers[layer].lora(rank) for bank in banks]
            found = [one for one in loras if one is not None]
            modules[layer] = LoRA(
                a_RI=torch.stack([one.a_RI for one in found]).mean(0),
                b_OR=torch.stack([one.b_OR for one in found]).mean(0),
                scale=lora.scale,
            )
        experts.append(Expert(name=f"{name}-{rank}", modules=modules))
    return AdapterBank(experts)


def _check_alike(banks: Sequence[AdapterBank]) -> None:
    if not banks:
        raise InputError("flylora: no adapters to average; give one or more")
    sizes = [
        {layer: (module.inputs, module.outputs) for layer, module in bank.layers.items()}
        for bank in banks
    ]
    for number, other in enumerate(sizes):
        layers = {**sizes[0], **other}
        for layer in (one for one in layers if sizes[0].get(one) != other.get(one)):
            raise InputError(
                f"flylora: expected adapters of the same layers, and at {layer} the first has "
                f"{_told(sizes[0].get(layer))}, number {number + 1} {_told(other.get(layer))}; "
                "average adapters of one base model and the same targets"
            )
    for bank in banks:
        for layer, module in bank.layers.items():
            if module.rank != 1:
                raise InputError(
                    f"flylora: {layer} has experts of rank {module.rank}, expected rank one for "
                    "all; average adapters that fly_bank made"
                )


def _told(size: tuple[int, int] | None) -> str:
    return "nothing" if size is None else f"{size[0]} inputs and {size[1]} outputs"
