"""Route the first tokens of an answer alone; the base model writes the rest.

MoGU's way to cost next to nothing: whether a model refuses is decided by its first tokens.
Source: MoGU (NeurIPS 2024), its inference code.

Axes: B prompts, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossroads.adapters.calls import calling
from crossroads.adapters.insertion import RoutedModel
from crossroads.core.errors import UsageError

FIRST = 5  # tokens, as the authors


@torch.no_grad()
def handed_off(
    routed: RoutedModel,
    ids_BT: Tensor,
    mask_BT: Tensor | None = None,
    *,
    most: int,
    first: int = FIRST,
) -> Tensor:
    """Return the likeliest continuations, (B, at most ``most``), padded after their end.

    Raises UsageError unless 0 <= ``first`` and 1 <= ``most``.

    Parameters
    ----------
    routed : a causal language model of transformers with experts in it
    ids_BT, mask_BT : prompts, padded on the left
    most, first : tokens of an answer, and those of them that experts take part in
    """
    if first < 0 or most < 1:
        raise UsageError(f"handoff: expected first >= 0 and most >= 1, got {first} and {most}")
    mask_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT
    begun = _continued(routed, ids_BT, mask_BT, min(first, most))
    left = most - (begun.shape[1] - ids_BT.shape[1])
    if min(first, most) and not left:
        return begun[:, ids_BT.shape[1] :]
    read_BT = torch.cat(
        [mask_BT.bool(), torch.ones_like(begun[:, ids_BT.shape[1] :], dtype=torch.bool)], 1
    )
    with routed.disabled():
        whole = _continued(routed, begun, read_BT, left)
    return _ended(whole[:, ids_BT.shape[1] :], _ends(routed))


def _continued(routed: RoutedModel, ids_BT: Tensor, mask_BT: Tensor, most: int) -> Tensor:
    if not most:
        return ids_BT
    with calling():  # what is said about the batch outside is not about prompts that grow
        found: Tensor = routed.model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT.long(),
            max_new_tokens=most,
            do_sample=False,
        )
    return found


def _ends(routed: RoutedModel) -> list[int]:
    config = routed.model.generation_config
    ends = getattr(config, "eos_token_id", None)
    return [] if ends is None else list(ends) if isinstance(ends, list) else [ends]


def _ended(answer_BT: Tensor, ends: list[int]) -> Tensor:
    """Return answers in which all after the first end is that end again."""
    if not ends:
        return answer_BT
    is_end_BT = torch.isin(answer_BT, torch.tensor(ends))
    is_over_BT = is_end_BT.cumsum(1) > 0
    return torch.where(is_over_BT, ends[0], answer_BT)
