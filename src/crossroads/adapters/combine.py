"""What experts add to a layer's output, by the three ways to combine them.

``mix`` and ``merge_delta`` are the same function where weights are constant over tokens;
``merge_factors`` is not, and of degree two in the weights. Shapes as in
``crossroads.adapters.contract``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crossroads.adapters.bank import LoRA, ModuleBank
from crossroads.adapters.contract import Routing
from crossroads.adapters.kernels import Kernel, mixed
from crossroads.core.errors import InputError

Weighting = Literal["root", "peft"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """A merged adapter for every sequence, or one for all (B = 1): scale * B (A x).

    Attributes
    ----------
    a_BRI, b_BOR, scale : as in ``LoRA``, with an axis for sequences
    """

    a_BRI: Tensor
    b_BOR: Tensor
    scale: float

    @classmethod
    def of(cls, one: LoRA) -> Factors:
        """Return the factors of one adapter, for all sequences."""
        return cls(a_BRI=one.a_RI[None], b_BOR=one.b_OR[None], scale=one.scale)

    def __call__(self, x_BTI: Tensor) -> Tensor:
        """Return what the adapter adds, (B, T, O), in the wider type of input and factors."""
        dtype = torch.promote_types(x_BTI.dtype, self.a_BRI.dtype)
        a, b = self.a_BRI.to(dtype), self.b_BOR.to(dtype)
        if len(a) == 1:  # one product over all tokens, not one a sequence
            a, b = a[0], b[0]
        return self.scale * ((x_BTI.to(dtype) @ a.mT) @ b.mT)


def combine(
    x_BTI: Tensor,
    bank: ModuleBank,
    routing: Routing,
    kernel: Kernel = "auto",
    onto_BTO: Tensor | None = None,
) -> Tensor:
    """Return what the experts add to the output of ``bank.name``, (B, T, O).

    Differentiable in the input, the weights and the factors. ``kernel`` is that of a mix, see
    ``crossroads.adapters.kernels``. With the output itself as ``onto_BTO``, returns the sum in its
    type; where no gradient is recorded it may be written to.
    """
    if routing.mode != "merge_factors":
        return mixed(x_BTI, bank, routing, kernel, onto_BTO)
    added_BTO = averaged(bank, routing.dense(bank.n_experts))(x_BTI)
    return added_BTO if onto_BTO is None else onto_BTO + added_BTO.to(onto_BTO.dtype)


def concatenated(bank: ModuleBank, weights_E: Tensor) -> LoRA:
    """Return sum_e w_e s_e B_e A_e as one LoRA of scale 1.

    Its rank is the sum of the ranks of the experts that have weight; at least 1.
    """
    scaled_E = (weights_E * bank.scale_E).to(bank.b_EOR.dtype)
    places = [int(e) for e in ((scaled_E != 0) & bank.alive_E).nonzero()[:, 0]] or [0]
    ranks = [max(1, int(bank.rank_E[e])) for e in places]
    return LoRA(
        a_RI=torch.cat([bank.a_ERI[e, :r] for e, r in zip(places, ranks, strict=True)]),
        b_OR=torch.cat(
            [scaled_E[e] * bank.b_EOR[e, :, :r] for e, r in zip(places, ranks, strict=True)], 1
        ),
        scale=1.0,
    )


def merged_factors(bank: ModuleBank, weights_E: Tensor, weighting: Weighting = "root") -> LoRA:
    """Return the average of the factors, a LoRA of the same rank.

    ``root`` puts sqrt(|s_e|) into both factors where scales differ, the sign into A, and s beside
    them where they agree; ``peft`` is what PEFT's "linear" combination does, sqrt(|w s|) on B and
    with its sign on A, of degree one in the weights.

    Raises InputError where ranks differ. Factors of experts trained apart are known up to a
    rotation each (A -> R A, B -> B R^-1 changes nothing but this average): prefer ``merge_delta``
    for them.
    """
    alive_E = bank.alive_E & (weights_E != 0)
    _check_ranks(bank, alive_E)
    scale_E = bank.scale_E
    if weighting == "peft":
        signed_E = weights_E * scale_E
        left_E, right_E, scale = signed_E.abs().sqrt(), signed_E.sign() * signed_E.abs().sqrt(), 1.0
    elif len(scale_E[alive_E].unique()) <= 1:
        left_E = right_E = weights_E
        scale = float(scale_E[alive_E][0]) if bool(alive_E.any()) else 1.0
    else:
        left_E = weights_E * scale_E.abs().sqrt()
        right_E, scale = left_E * scale_E.sign(), 1.0
    a_RI = torch.einsum("e,eri->ri", right_E.to(bank.a_ERI.dtype), bank.a_ERI)
    b_OR = torch.einsum("e,eor->or", left_E.to(bank.b_EOR.dtype), bank.b_EOR)
    return LoRA(a_RI=a_RI, b_OR=b_OR, scale=scale)


def averaged(bank: ModuleBank, weights_BTHE: Tensor) -> Factors:
    """Return the average of the factors for every sequence, each head for its own slices.

    Head h averages the h-th slice of the inputs of A and of the outputs of B. Scales as in
    ``merged_factors``: sqrt(|s_e|) goes into both factors where scales differ, the sign into A.

    Raises InputError where the bank was not made for these heads, or ranks differ.
    """
    n_experts, rank, inputs = bank.a_ERI.shape
    heads = weights_BTHE.shape[2]
    if heads not in {1, bank.heads}:
        raise InputError(f"merge_factors at {bank.name}: {heads} heads, the bank has {bank.heads}")
    with torch.no_grad():
        _check_ranks(bank, bank.alive_E & (weights_BTHE != 0).flatten(0, 2).any(0))
    scales = bank.scale_E[bank.alive_E]
    same = bool((scales == scales[0]).all())
    left_BHE = right_BHE = weights_BTHE[:, 0].to(bank.a_ERI.dtype)
    if not same:
        left_BHE = left_BHE * bank.scale_E.abs().sqrt().to(bank.a_ERI.dtype)
        right_BHE = left_BHE * bank.scale_E.sign().to(bank.a_ERI.dtype)
    cut_ERHI = bank.a_ERI.reshape(n_experts, rank, heads, inputs // heads)
    cut_EHOR = bank.b_EOR.reshape(n_experts, heads, bank.outputs // heads, rank)
    return Factors(
        a_BRI=torch.einsum("bhe,erhi->brhi", right_BHE, cut_ERHI).flatten(2),
        b_BOR=torch.einsum("bhe,ehor->bhor", left_BHE, cut_EHOR).flatten(1, 2),
        scale=float(scales[0]) if same else 1.0,
    )


def _check_ranks(bank: ModuleBank, used_E: Tensor) -> None:
    ranks = bank.rank_E[used_E]
    if len(ranks) and int(ranks.min()) != int(ranks.max()):
        raise InputError(
            f"merge_factors at {bank.name}: ranks differ ({int(ranks.min())} and "
            f"{int(ranks.max())}), and factors of different ranks have no average; give experts of "
            "one rank, or a router that mixes their outputs, such as uniform"
        )
