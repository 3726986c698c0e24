"""Ways to compute what the experts of a layer add, and the choice among them.

=========  ==========================================================  ==========================
dense      two matrix products over all experts, weights between them  few experts or few rows
grouped    rows sorted by expert, two products per expert that is met  many rows, sparse routing
gather     factors gathered per place: the written-out reference       tests
=========  ==========================================================  ==========================

All give the same numbers up to rounding, and the same gradients; none holds anything of size
(tokens, experts, outputs). Products run in the wider of the types of input and factors. Weights
that hold for a whole call have a kernel of their own, ``crossroads.adapters.static``.

Axes: N rows (tokens), K places, E experts, R rank, I inputs, O outputs, B sequences, T positions,
F = E * R.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import ModuleBank
from crossroads.adapters.contract import Routing
from crossroads.core.dispatch import (
    combine_rows,
    gather_rows,
    grouped_linear,
    plan_rows,
)
from crossroads.core.dispatch.plain import is_grouped_size
from crossroads.core.dispatch.rows import row_weights
from crossroads.core.errors import InputError, unknown_name

Kernel = Literal["auto", "dense", "grouped", "gather"]
KERNELS: tuple[Kernel, ...] = ("auto", "dense", "grouped", "gather")
_HALF = (torch.bfloat16, torch.float16)
# The rule is measured by benchmarks/adapters/kernels.py; docs/adapters/kernels.md has the table.
_SMALL_BANK = 128  # E * R up to which two wide products beat sorting and many narrow ones
_SMALL_PRODUCT = 2**14  # rows * E * R up to which the same holds, of a few rows or a larger bank
# In half precision wide products are cheap: sorting needs both, many columns for a place and many
# rows for an expert.
_COLUMNS_PER_PLACE = 256
_ROWS_PER_EXPERT = 64
# Of torch's own grouped product, where there is one.
_GROUPED_TYPES = (torch.float32, *_HALF) if hasattr(nn.functional, "grouped_mm") else ()
_HALF_BLOCK = 32  # rows a block is padded to in half precision, where every new size is compiled


def choose(rows: int, places: int, bank: ModuleBank, dtype: torch.dtype) -> Kernel:
    """Return the kernel for sparse routing of ``rows`` tokens with ``places`` experts each."""
    columns = bank.n_experts * bank.rank
    if columns <= _SMALL_BANK or rows * columns <= _SMALL_PRODUCT:
        return "dense"
    if dtype in _HALF and (
        columns <= _COLUMNS_PER_PLACE * places or rows * places < _ROWS_PER_EXPERT * bank.n_experts
    ):
        return "dense"
    return "grouped"


def mixed(
    x_BTI: Tensor,
    bank: ModuleBank,
    routing: Routing,
    kernel: Kernel = "auto",
    onto_BTO: Tensor | None = None,
) -> Tensor:
    """Return sum_e w_e s_e B_e (A_e x), (B, T, O), in the wider type of input and factors.

    With ``onto_BTO`` it is added to that, and the sum returned in that one's type; where no
    gradient is recorded the tensor itself is written to. Dense routing always takes the dense
    kernel. Raises InputError for weights by head, UsageError for an unknown kernel.
    """
    if kernel not in KERNELS:
        raise unknown_name("kernel", kernel, KERNELS)
    if routing.weights.shape[2] != 1:
        raise InputError(f"mix at {bank.name}: weights by head need mode 'merge_factors'")
    dtype = torch.promote_types(x_BTI.dtype, bank.a_ERI.dtype)
    x_NI = x_BTI.to(dtype).reshape(-1, bank.inputs)
    onto_NO = None
    if onto_BTO is not None and onto_BTO.dtype == dtype and onto_BTO.is_contiguous():
        onto_NO = onto_BTO.view(-1, bank.outputs)
    if kernel == "auto" and routing.index is not None:
        kernel = choose(x_NI.shape[0], routing.index.shape[-1], bank, dtype)
    if routing.index is None or kernel == "dense":
        dense_BTE = routing.dense(bank.n_experts)[:, :, 0]
        weights_NE = _spread(dense_BTE, x_BTI)
        y_NO = dense(x_NI, bank, weights_NE, onto_NO)
    else:
        index_NK = _spread(routing.index[:, :, 0], x_BTI)
        weights_NK = _spread(routing.weights[:, :, 0], x_BTI)
        run = grouped if kernel == "grouped" else gathered
        y_NO = run(x_NI, bank, index_NK, weights_NK, onto_NO)
    if onto_NO is not None and y_NO is onto_NO and onto_BTO is not None:
        return onto_BTO  # it was written to
    y_BTO = y_NO.view(*x_BTI.shape[:2], bank.outputs)
    if onto_BTO is None or onto_NO is not None:
        return y_BTO
    return onto_BTO + y_BTO.to(onto_BTO.dtype)


def dense(
    x_NI: Tensor, bank: ModuleBank, weights_NE: Tensor, onto_NO: Tensor | None = None
) -> Tensor:
    """Return the mix by two products over all experts; one row of weights may stand for all."""
    a_FI, b_FO = _flat(bank, x_NI.dtype)  # the scale is in b_FO
    down_NER = nn.functional.linear(x_NI, a_FI).view(-1, bank.n_experts, bank.rank)
    weights_NE1 = weights_NE.unsqueeze(-1)
    # Weights multiply in their own single precision, whatever the type of the products.
    if torch.is_grad_enabled():
        down_NF = (down_NER * weights_NE1).to(x_NI.dtype).flatten(1)
        return down_NF @ b_FO if onto_NO is None else torch.addmm(onto_NO, down_NF, b_FO)
    down_NF = down_NER.mul_(weights_NE1).flatten(1)
    return down_NF @ b_FO if onto_NO is None else onto_NO.addmm_(down_NF, b_FO)


def grouped(
    x_NI: Tensor,
    bank: ModuleBank,
    index_NK: Tensor,
    weights_NK: Tensor,
    onto_NO: Tensor | None = None,
) -> Tensor:
    """Return the mix by rows sorted by expert.

    In half precision blocks are padded, because every new size of a product is compiled.
    """
    scaled_NK = weights_NK * bank.scale_E[index_NK]
    a_ERI, b_EOR = bank.a_ERI.to(x_NI.dtype), bank.b_EOR.to(x_NI.dtype)
    if not torch.is_grad_enabled() and x_NI.shape[0]:
        if onto_NO is None:
            onto_NO = x_NI.new_zeros(len(x_NI), bank.outputs)
        rows_S, weights_S, ends_E = _sorted_rows(index_NK, scaled_NK, bank.n_experts, x_NI.dtype)
        down_SR = _products(x_NI.index_select(0, rows_S), ends_E, a_ERI)
        up_SO = _products(down_SR.mul_(weights_S[:, None]), ends_E, b_EOR)
        return onto_NO.index_add_(0, rows_S, up_SO)
    plan = plan_rows(index_NK, bank.n_experts, multiple=_block(x_NI.dtype))
    down_SR = grouped_linear(gather_rows(x_NI, plan), plan, a_ERI)
    y_NO = combine_rows(grouped_linear(down_SR, plan, b_EOR), scaled_NK, plan)
    return y_NO if onto_NO is None else onto_NO + y_NO


def _block(dtype: torch.dtype) -> int:
    return _HALF_BLOCK if dtype in _HALF else 1


def _sorted_rows(
    index_NK: Tensor, weights_NK: Tensor, n_experts: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return token and weight of each row sorted by expert, and the end of each expert's rows.

    Pad rows repeat a token of their block with weight 0. Without pads it is a few operations: at a
    few hundred rows their number is what a layer's time is made of.
    """
    if _block(dtype) > 1:
        plan = plan_rows(index_NK, n_experts, multiple=_block(dtype))
        ends_E = torch.tensor(plan.offsets[1:], dtype=torch.int32)
        return plan.rows_S, row_weights(weights_NK, plan, weights_NK.dtype), ends_E
    places = index_NK.shape[1]
    expert_S, order_S = torch.sort(index_NK.reshape(-1), stable=True)
    marks_E = torch.arange(n_experts)
    ends_E = torch.searchsorted(expert_S, marks_E, right=True, out_int32=True)
    weights_S = weights_NK.reshape(-1).index_select(0, order_S)
    rows_S = order_S if places == 1 else order_S.div(places, rounding_mode="floor")
    return rows_S, weights_S, ends_E


def _products(x_SI: Tensor, ends_E: Tensor, weight_EOI: Tensor) -> Tensor:
    """Return each sorted row times its expert's weight, without gradient."""
    # torch's own loop over experts costs half of one in Python, where it takes the sizes.
    sizes = (x_SI.shape[1], weight_EOI.shape[1])
    if x_SI.dtype in _GROUPED_TYPES and all(is_grouped_size(size, x_SI) for size in sizes):
        return nn.functional.grouped_mm(x_SI, weight_EOI.mT, offs=ends_E)
    y_SO = x_SI.new_empty(len(x_SI), weight_EOI.shape[1])
    counts = ends_E.diff(prepend=ends_E.new_zeros(1)).tolist()
    blocks = zip(x_SI.split(counts), weight_EOI.mT.unbind(), y_SO.split(counts), strict=True)
    for rows, weight_IO, out in blocks:
        if len(rows):
            torch.mm(rows, weight_IO, out=out)
    return y_SO


def gathered(
    x_NI: Tensor,
    bank: ModuleBank,
    index_NK: Tensor,
    weights_NK: Tensor,
    onto_NO: Tensor | None = None,
) -> Tensor:
    """Return the mix by each place's own factors: N * K * R * (I + O) numbers are copied."""
    scaled_NK = (weights_NK * bank.scale_E[index_NK]).to(x_NI.dtype)
    a_NKRI = bank.a_ERI.to(x_NI.dtype)[index_NK]
    b_NKOR = bank.b_EOR.to(x_NI.dtype)[index_NK]
    down_NKR = torch.einsum("nkri,ni->nkr", a_NKRI, x_NI)
    y_NO = torch.einsum("nk,nkor,nkr->no", scaled_NK, b_NKOR, down_NKR)
    return y_NO if onto_NO is None else onto_NO + y_NO


def _spread(values: Tensor, x_BTI: Tensor) -> Tensor:
    """Return values of sequences or positions for every token, (N, ...)."""
    if values.shape[:2] == x_BTI.shape[:2]:
        return values.flatten(0, 1)
    if values.shape[:2].numel() == 1:
        return values.flatten(0, 1).expand(x_BTI.shape[:2].numel(), -1)
    return values.expand(*x_BTI.shape[:2], -1).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class _Flat:
    """Factors of a bank as two matrices, and what they were made from."""

    key: tuple[Any, ...]
    a_FI: Tensor
    b_FO: Tensor


_KEPT: WeakKeyDictionary[ModuleBank, _Flat] = WeakKeyDictionary()


def _flat(bank: ModuleBank, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return A as (F, I) and scale * B as (F, O); kept while they stay and nobody trains them."""
    if torch.is_grad_enabled():
        return _flattened(bank, dtype)
    parts = (bank.a_ERI, bank.b_EOR, bank.scale_E)
    key = (dtype, bank.rewrites, *map(identity, parts))
    kept = _KEPT.get(bank)
    if kept is None or kept.key != key:
        kept = _KEPT[bank] = _Flat(key, *_flattened(bank, dtype))
    return kept.a_FI, kept.b_FO


def _flattened(bank: ModuleBank, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    b_ERO = bank.b_EOR.transpose(1, 2) * bank.scale_E[:, None, None]
    return bank.a_ERI.flatten(0, 1).to(dtype), b_ERO.flatten(0, 1).to(dtype)


def identity(tensor: Tensor) -> tuple[Any, ...]:
    """Return what changes when a tensor does.

    Those made in inference mode keep no version, and writes through ``.data`` do not raise it:
    ``AdapterBank.rewritten`` is for them.
    """
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.dtype, version
