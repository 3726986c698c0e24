"""From a decision and experts to outputs: the sparse paths, and the dense one they must equal.

Axes: B sequences, T positions, N = B * T tokens, D width, K places, G groups of S tokens, E
experts, C slots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossroads.core.errors import InputError
from crossroads.moe.contract import Dense, ExpertChoice, RoutingDecision, TokenChoice
from crossroads.moe.conversions import executed, expert_choice_to_token_choice, to_dense
from crossroads.moe.experts import Experts


def combine(experts: Experts, x_ND: Tensor, choice: TokenChoice | ExpertChoice | Dense) -> Tensor:
    """Return the weighted outputs of the chosen experts on single tokens, (N, D_out)."""
    if isinstance(choice, Dense):
        return combine_dense(experts, x_ND, choice)
    if isinstance(choice, ExpertChoice):
        return combine_slots(experts, x_ND, choice)
    return experts.run_tokens(x_ND, executed(choice, experts.kinds), choice.w_NK)


def combine_slots(experts: Experts, x_ND: Tensor, choice: ExpertChoice) -> Tensor:
    """Return the outputs of an expert choice: every expert has a buffer of G * C tokens."""
    n_groups, n_experts, n_slots = choice.tok_GEC.shape
    offset_G = torch.arange(n_groups, device=x_ND.device) * choice.group_size
    row_GEC = choice.tok_GEC + offset_G[:, None, None]
    taken_EP = (choice.tok_GEC >= 0).transpose(0, 1).reshape(n_experts, -1)
    row_EP = row_GEC.transpose(0, 1).reshape(n_experts, -1).masked_fill(~taken_EP, 0)
    rows = x_ND.index_select(0, row_EP.reshape(-1))
    x_EPD = rows.reshape(n_experts, n_groups * n_slots, x_ND.shape[-1])
    y_EPD = experts.run_slots(x_EPD)
    w_EP = choice.w_GEC.transpose(0, 1).reshape(n_experts, -1) * taken_EP
    y_PD = (y_EPD * w_EP.unsqueeze(-1).to(y_EPD.dtype)).reshape(-1, y_EPD.shape[-1])
    out = y_PD.new_zeros(x_ND.shape[0], y_PD.shape[1])
    return out.index_add(0, row_EP.reshape(-1), y_PD)


def combine_dense(experts: Experts, x_ND: Tensor, choice: Dense) -> Tensor:
    """Return combine * f_e(dispatch * x), by einsum over all slots: exact, and slow for large S."""
    n_groups, size, n_experts, n_slots = choice.dispatch_GSEC.shape
    x_GSD = x_ND.reshape(n_groups, size, -1)
    dispatch = choice.dispatch_GSEC.to(x_ND.dtype)
    x_EGCD = torch.einsum("gsec,gsd->egcd", dispatch, x_GSD)
    y_EPD = experts.run_slots(x_EGCD.reshape(n_experts, n_groups * n_slots, -1))
    y_EGCD = y_EPD.reshape(n_experts, n_groups, n_slots, -1)
    combine_GSEC = choice.combine_GSEC.to(y_EGCD.dtype)
    return torch.einsum("gsec,egcd->gsd", combine_GSEC, y_EGCD).reshape(x_ND.shape[0], -1)


def apply_decision(
    experts: Experts,
    x_BTD: Tensor,
    decision: RoutingDecision,
    *,
    path: str = "sparse",
    is_full: bool = False,
) -> Tensor:
    """Return the routed part of a layer, (B, T, D_out), padding rows zero.

    ``path="dense"`` takes the reference by einsum for every form; ``is_full`` promises that no
    token is padding. Raises InputError for an unknown path.
    """
    if path not in ("sparse", "dense"):
        raise InputError(f"path: expected sparse or dense, got {path!r}")
    batch, length, _ = x_BTD.shape
    x_ND = x_BTD.reshape(batch * length, -1)

    def run(choice: Any, x: Tensor) -> Tensor:
        choice = per_token(choice, decision, batch, length)
        if path == "dense":
            groups = batch if decision.granularity == "token" else 1
            choice = to_dense(without_nulls(choice, experts), decision.n_experts, groups)
        return combine(experts, x, choice)

    if decision.choice is not None:
        y_ND = run(decision.choice, x_ND)
    else:
        parts = []
        for branch in decision.branches:
            y = run(branch.choice, branch.x_ND)
            y = branch.post(y) if branch.post is not None else y
            parts.append(branch.gate_N1.to(y.dtype) * y)
        y_ND = sum(parts[1:], parts[0])
    if not is_full:
        y_ND = torch.where(decision.mask_N.unsqueeze(-1), y_ND, torch.zeros_like(y_ND))
    return y_ND.reshape(batch, length, -1)


def without_nulls(choice: Any, experts: Experts) -> Any:
    """Return a token choice whose null, dropped and empty places are all empty."""
    if not isinstance(choice, TokenChoice):
        return choice
    return TokenChoice(idx_NK=executed(choice, experts.kinds), w_NK=choice.w_NK)


def per_token(choice: Any, decision: RoutingDecision, batch: int, length: int) -> Any:
    """Return a decision about sequences or the batch as one about tokens."""
    if decision.granularity == "token" or not isinstance(choice, TokenChoice):
        return choice
    times = length if decision.granularity == "sequence" else batch * length

    def spread(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows.repeat_interleave(times, 0)

    idx_NK, w_NK = spread(choice.idx_NK), spread(choice.w_NK)
    assert idx_NK is not None and w_NK is not None
    real_N1 = decision.mask_N.unsqueeze(1)
    return TokenChoice(
        idx_NK=torch.where(real_N1, idx_NK, -1), w_NK=w_NK, dropped_NK=spread(choice.dropped_NK)
    )


def executed_counts(choice: Any, decision: RoutingDecision, experts: Experts) -> Tensor:
    """Return how many tokens each expert really ran, (E,); for a dense form, its slots.

    Experts with a sequence view that are not packed run all tokens of a sequence for one of them.
    """
    if isinstance(choice, Dense):
        n_groups, _, n_experts, n_slots = choice.dispatch_GSEC.shape
        return torch.full((n_experts,), float(n_groups * n_slots))
    whole = experts.view == "sequence" and not experts.pack
    if isinstance(choice, ExpertChoice):
        if not whole:
            return (choice.tok_GEC >= 0).sum((0, 2)).float()
        choice = expert_choice_to_token_choice(choice)
    batch, length = decision.shape
    idx_NK = executed(per_token(choice, decision, batch, length), experts.kinds)
    if whole:
        there_BPE = torch.nn.functional.one_hot(
            idx_NK.reshape(batch, -1) + 1, decision.n_experts + 1
        )
        served_BE = there_BPE[..., 1:].any(1).float()
        return decision.mask_N.reshape(batch, length).sum(1).float() @ served_BE
    return torch.bincount(idx_NK[idx_NK >= 0], minlength=decision.n_experts).float()


def apply_to_sequences(
    experts: Experts,
    x_BTD: Tensor,
    decision: RoutingDecision,
    *,
    pos_BT: Tensor,
    causal: bool,
) -> Tensor:
    """Return the routed part of experts that see whole sequences.

    ``sequence`` view: (B, T, D_out), an expert's output weighted token by token, zero where it was
    not chosen; with ``pack`` an expert sees its own tokens alone, in order of position. ``pooled``
    view: (B, D_out), decisions about sequences only.
    """
    batch, length, _ = x_BTD.shape
    mask_BT = decision.mask_N.reshape(batch, length)
    if experts.view == "pooled":
        return _pooled(experts, x_BTD, decision, mask_BT=mask_BT, pos_BT=pos_BT, causal=causal)
    choice: Any = decision.choice
    if isinstance(choice, ExpertChoice):
        choice = expert_choice_to_token_choice(choice)
    if not isinstance(choice, TokenChoice):
        raise InputError("experts with a sequence view need a token or expert choice")
    choice = per_token(choice, decision, batch, length)
    idx_NK = executed(choice, experts.kinds)
    out = x_BTD.new_zeros(batch, length, experts.d_out)
    for e in range(experts.n_experts):
        here_NK = idx_NK == e
        chosen_BT = here_NK.any(-1).reshape(batch, length)
        rows = chosen_BT.any(1).nonzero().squeeze(1)
        if not len(rows):
            continue
        w_BT = torch.where(here_NK, choice.w_NK, 0.0).sum(-1).reshape(batch, length)
        keep_RT = chosen_BT[rows] if experts.pack else mask_BT[rows]
        y_RTD = _on_kept(experts, e, x_BTD[rows], keep_RT, pos_RT=pos_BT[rows], causal=causal)
        out = out.index_add(0, rows, y_RTD * w_BT[rows].unsqueeze(-1).to(y_RTD.dtype))
    return out


def _on_kept(
    experts: Experts, e: int, x_RTD: Tensor, keep_RT: Tensor, *, pos_RT: Tensor, causal: bool
) -> Tensor:
    """Run an expert on the kept tokens, packed to the left, and put the rows back in place."""
    order_RT = torch.argsort(keep_RT.to(torch.int8), dim=1, descending=True, stable=True)
    longest = int(keep_RT.sum(1).max())
    order_RT = order_RT[:, :longest]
    index = order_RT.unsqueeze(-1)
    packed = x_RTD.gather(1, index.expand(-1, -1, x_RTD.shape[-1]))
    y = experts.expert(
        e,
        packed,
        mask_BT=keep_RT.gather(1, order_RT),
        pos_BT=pos_RT.gather(1, order_RT),
        causal=causal,
    )
    spread = y.new_zeros(*keep_RT.shape, y.shape[-1])
    return spread.scatter(1, index.expand(-1, -1, y.shape[-1]), y)


def _pooled(
    experts: Experts,
    x_BTD: Tensor,
    decision: RoutingDecision,
    *,
    mask_BT: Tensor,
    pos_BT: Tensor,
    causal: bool,
) -> Tensor:
    choice = decision.choice
    if decision.granularity == "token" or not isinstance(choice, TokenChoice):
        raise InputError("experts with a pooled view need a token choice about sequences")
    batch = x_BTD.shape[0]
    idx_BK = executed(choice, experts.kinds).expand(batch, -1)
    w_BK = choice.w_NK.expand(batch, -1)
    out = x_BTD.new_zeros(batch, experts.d_out)
    for e in range(experts.n_experts):
        here_BK = idx_BK == e
        rows = here_BK.any(-1).nonzero().squeeze(1)
        if not len(rows):
            continue
        y = experts.expert(
            e, x_BTD[rows], mask_BT=mask_BT[rows], pos_BT=pos_BT[rows], causal=causal
        )
        w_R = torch.where(here_BK, w_BK, 0.0).sum(-1)[rows]
        out = out.index_add(0, rows, y * w_R.unsqueeze(-1).to(y.dtype))
    return out
