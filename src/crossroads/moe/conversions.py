"""Between the three forms of a decision, wherever nothing is lost.

Axes: N = G * S tokens in G groups, K places, E experts, C slots per expert and group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossroads.core.errors import InputError
from crossroads.moe.capacity import queue_positions
from crossroads.moe.contract import NOBODY, Dense, ExpertChoice, TokenChoice


def token_choice_to_dense(choice: TokenChoice, n_experts: int, n_groups: int = 1) -> Dense:
    """Return one-hot dispatch and weighted combine; the slot is the place in the expert's queue."""
    idx_NK = torch.where(choice.live_NK, choice.idx_NK, NOBODY)
    n_tokens, k = idx_NK.shape
    size = n_tokens // n_groups
    idx_GSK = idx_NK.reshape(n_groups, size, k)
    slot_GSK = queue_positions(idx_GSK, n_experts)
    n_slots = int(slot_GSK.max()) + 1 if slot_GSK.numel() else 0
    n_slots = max(n_slots, 1)
    flat_GSK = (idx_GSK * n_slots + slot_GSK).clamp_min(0)
    live_GSK = (idx_GSK >= 0).to(choice.w_NK.dtype)
    empty = choice.w_NK.new_zeros(n_groups, size, n_experts * n_slots)
    shape = (n_groups, size, n_experts, n_slots)
    w_GSK = choice.w_NK.reshape(n_groups, size, k) * live_GSK
    return Dense(
        dispatch_GSEC=empty.scatter_add(-1, flat_GSK, live_GSK).reshape(shape),
        combine_GSEC=empty.scatter_add(-1, flat_GSK, w_GSK).reshape(shape),
    )


def expert_choice_to_dense(choice: ExpertChoice) -> Dense:
    """Return one-hot dispatch and weighted combine; slots stay where they are."""
    taken_GEC = choice.tok_GEC >= 0
    one_hot = torch.nn.functional.one_hot(choice.tok_GEC.clamp_min(0), choice.group_size)
    dispatch = (one_hot * taken_GEC.unsqueeze(-1)).to(choice.w_GEC.dtype)
    combine = dispatch * choice.w_GEC.unsqueeze(-1)
    return Dense(
        dispatch_GSEC=dispatch.permute(0, 3, 1, 2), combine_GSEC=combine.permute(0, 3, 1, 2)
    )


def token_choice_to_expert_choice(
    choice: TokenChoice, n_experts: int, n_groups: int = 1
) -> ExpertChoice:
    """Return the live pairs seen from the experts; a slot is the place in the expert's queue."""
    return dense_to_expert_choice(token_choice_to_dense(choice, n_experts, n_groups))


def expert_choice_to_token_choice(choice: ExpertChoice) -> TokenChoice:
    """Return the same pairs seen from the tokens; K = the most experts any token got (at least 1).

    Places are in descending order of the weight's size, ties to the lower expert.
    """
    n_groups, n_experts, _ = choice.tok_GEC.shape
    n_tokens = n_groups * choice.group_size
    offset_G11 = (torch.arange(n_groups) * choice.group_size).to(choice.tok_GEC.device)
    row_GEC = choice.tok_GEC + offset_G11[:, None, None]
    taken = choice.tok_GEC >= 0
    expert_GEC = torch.arange(n_experts, device=row_GEC.device)[None, :, None].expand_as(row_GEC)
    flat = row_GEC[taken] * n_experts + expert_GEC[taken]
    picked_NE = torch.zeros(n_tokens * n_experts, dtype=torch.bool, device=row_GEC.device)
    picked_NE[flat] = True
    picked_NE = picked_NE.reshape(n_tokens, n_experts)
    w_NE = choice.w_GEC.new_zeros(n_tokens * n_experts).index_add(0, flat, choice.w_GEC[taken])
    w_NE = w_NE.reshape(n_tokens, n_experts)
    k = max(int(picked_NE.sum(-1).max()), 1) if n_tokens else 1
    order = torch.where(picked_NE, w_NE.detach().abs(), -torch.inf)
    idx_NK = torch.argsort(order, dim=-1, descending=True, stable=True)[:, :k]
    there_NK = picked_NE.gather(-1, idx_NK)
    w_NK = torch.where(there_NK, w_NE.gather(-1, idx_NK), 0.0)
    return TokenChoice(idx_NK=torch.where(there_NK, idx_NK, NOBODY), w_NK=w_NK)


def dense_to_expert_choice(choice: Dense) -> ExpertChoice:
    """Return the tokens in the slots of a dense decision whose slots hold one token each.

    Raises InputError where a slot mixes tokens, scales its token or gives to one it did not take:
    that has no sparse form.
    """
    dispatch, combine = choice.dispatch_GSEC, choice.combine_GSEC
    held = dispatch.sum(1)
    is_one_hot = ((dispatch == 0) | (dispatch == 1)).all() & (held <= 1).all()
    if not bool(is_one_hot & ((dispatch > 0) | (combine == 0)).all()):
        raise InputError(
            "dispatch: a slot mixes several tokens, which no sparse decision can say; "
            "apply the dense form, or record it with approx_topk"
        )
    tok_GEC = torch.where(held > 0, dispatch.argmax(1), NOBODY)
    return ExpertChoice(
        tok_GEC=tok_GEC,
        w_GEC=combine.gather(1, tok_GEC.clamp_min(0).unsqueeze(1)).squeeze(1),
        group_size=dispatch.shape[1],
    )


def to_dense(
    choice: TokenChoice | ExpertChoice | Dense, n_experts: int, n_groups: int = 1
) -> Dense:
    """Return any form as the dense one."""
    if isinstance(choice, Dense):
        return choice
    if isinstance(choice, ExpertChoice):
        return expert_choice_to_dense(choice)
    return token_choice_to_dense(choice, n_experts, n_groups)


def to_token_choice(choice: TokenChoice | ExpertChoice | Dense) -> TokenChoice:
    """Return any form as a token choice. Raises InputError for a dense one that mixes tokens."""
    if isinstance(choice, TokenChoice):
        return choice
    if isinstance(choice, ExpertChoice):
        return expert_choice_to_token_choice(choice)
    return expert_choice_to_token_choice(dense_to_expert_choice(choice))


def executed(choice: TokenChoice, kinds: tuple[str, ...]) -> Tensor:
    """Return the experts that really run, int64 (N, K): null, dropped and empty places are -1."""
    if "null" not in kinds:
        if choice.dropped_NK is None:
            return choice.idx_NK
        return torch.where(choice.live_NK, choice.idx_NK, NOBODY)
    runs_E = torch.tensor([kind != "null" for kind in kinds], device=choice.idx_NK.device)
    runs_NK = choice.live_NK & runs_E[choice.idx_NK.clamp_min(0)]
    return torch.where(runs_NK, choice.idx_NK, NOBODY)
