"""Arrow's prototypes: the input direction along which an adapter changes its layer most.

It is the top right-singular vector of B A, found in the small space of the rank: with A^T = Qa Ra
and B = Qb Rb (QR), B A = Qb (Rb Ra^T) Qa^T, so that an R x R singular value decomposition suffices
and B A is never formed. Source: Towards Modular LLMs by Building and Reusing a Library of LoRAs
(Ostapenko et al. 2024).

Axes: E experts, R rank, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from crossroads.adapters.bank import Expert, LoRA, ModuleBank
from crossroads.core.errors import InputError


def prototypes_EI(bank: ModuleBank) -> Tensor:
    """Return the unit prototypes of a layer's experts, (E, I) float32.

    An expert without any effect (B A = 0, or dead) has no direction: its row is zero. Signs mean
    nothing and are fixed by making the largest entry positive.
    """
    a_EIR, b_EOR = bank.a_ERI.detach().float().mT, bank.b_EOR.detach().float()
    base_EIR, right_ERR = torch.linalg.qr(a_EIR)
    _, left_ERR = torch.linalg.qr(b_EOR)
    _, sizes_ER, vectors_ERR = torch.linalg.svd(left_ERR @ right_ERR.mT)
    found_EI = torch.einsum("eir,er->ei", base_EIR, vectors_ERR[:, 0])
    largest_E1 = found_EI.gather(1, found_EI.abs().argmax(1, keepdim=True))
    has_effect_E1 = (sizes_ER[:, :1] > 0) & bank.alive_E[:, None]
    return torch.where(has_effect_E1, found_EI * largest_E1.sign(), 0.0)


def without_general(expert: Expert, general: Sequence[Expert]) -> Expert:
    """Return the expert minus the mean delta of general adapters, exactly (GenKnowSub).

    delta = s B A - (1/G) sum_g s_g B_g A_g, as one adapter of the summed ranks. Averaging and
    subtracting A and B apart, as PEFT does, is another function. Artifacts are dropped, since they
    told of the expert as it was. Layers that only general adapters touch stay without it.

    Raises InputError without general adapters.
    """
    if not general:
        raise InputError("general adapters: there are none to subtract; give at least one")
    modules = {
        layer: _minus_mean(lora, [g.modules.get(layer) for g in general])
        for layer, lora in expert.modules.items()
    }
    return replace(expert, modules=modules, artifacts={})


def _minus_mean(lora: LoRA, general: Sequence[LoRA | None]) -> LoRA:
    there = [one for one in general if one is not None]
    shares = [-one.scale / len(general) for one in there]
    return LoRA(
        a_RI=torch.cat([lora.a_RI, *(one.a_RI for one in there)]),
        b_OR=torch.cat(
            [
                lora.scale * lora.b_OR,
                *(share * g.b_OR for share, g in zip(shares, there, strict=True)),
            ],
            1,
        ),
        scale=1.0,
    )
