"""Batches of prompts with answers, and the loss of a language model on the answers.

Axes: B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.core.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class TextBatch:
    """Sequences padded on the right to one length.

    Attributes
    ----------
    ids_BT : int64; mask_BT : bool, True = real token
    answer_BT : bool, tokens that are scored, each predicted from those before it
    task_ids_B, labels_B : int64, the task, and the expert that belongs to it, of every sequence
    embedding_BG : sentence embedding of every prompt
    """

    ids_BT: Tensor
    mask_BT: Tensor
    answer_BT: Tensor
    task_ids_B: Tensor | None = None
    labels_B: Tensor | None = None
    embedding_BG: Tensor | None = None

    @property
    def n_answer_tokens(self) -> int:
        return int(self.answer_BT[:, 1:].sum())


def text_batch(
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    length: int,
    pad: int = 0,
    fixed: bool = False,
    **facts: Tensor,
) -> TextBatch:
    """Tokenise prompts and answers apart and join them, cutting prompts from the left to fit.

    ``tokenizer`` is a ``tokenizers.Tokenizer``. ``fixed`` pads every batch to ``length``, so that
    kernels compiled per size are compiled once. An empty prompt scores the answer from its second
    token on. ``facts`` are further fields of ``TextBatch``.

    Raises InputError where an answer has no tokens or fills the whole length.
    """
    rows = []
    for prompt, answer in zip(prompts, answers, strict=True):
        scored = tokenizer.encode(answer, add_special_tokens=False).ids
        before = tokenizer.encode(prompt, add_special_tokens=False).ids
        if not scored or len(scored) > length - bool(before):
            raise InputError(
                f"answer {answer[:40]!r}: has {len(scored)} tokens, the length is {length}; "
                "shorten the answer or raise the length"
            )
        too_long = max(0, len(before) + len(scored) - length)
        rows.append((before[too_long:], scored))
    width = length if fixed else max(len(before) + len(scored) for before, scored in rows)
    ids_BT = torch.full((len(rows), width), pad)
    mask_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    answer_BT = torch.zeros_like(mask_BT)
    for row, (before, scored) in enumerate(rows):
        end = len(before) + len(scored)
        ids_BT[row, :end] = torch.tensor([*before, *scored])
        mask_BT[row, :end] = True
        answer_BT[row, len(before) : end] = True
    return TextBatch(ids_BT=ids_BT, mask_BT=mask_BT, answer_BT=answer_BT, **facts)


def answer_nll(model: nn.Module, batch: TextBatch) -> Tensor:
    """Return the negative log-likelihood of every scored token, nats, in the order of the batch.

    ``model`` is a causal language model of transformers. Its head, a third of the cost of a small
    model, is computed at the scored positions alone.
    """
    backbone, head = model.base_model, model.get_output_embeddings()
    hidden_BTD = backbone(
        input_ids=batch.ids_BT, attention_mask=batch.mask_BT.long(), use_cache=False
    ).last_hidden_state
    scored = batch.answer_BT[:, 1:]
    logits_NV = head(hidden_BTD[:, :-1][scored]).float()
    return nn.functional.cross_entropy(logits_NV, batch.ids_BT[:, 1:][scored], reduction="none")


def answer_nll_B(model: nn.Module, batch: TextBatch) -> Tensor:
    """Return the summed negative log-likelihood of every sequence's answer, (B,)."""
    row_N = batch.answer_BT[:, 1:].nonzero()[:, 0]
    nll_N = answer_nll(model, batch)
    return nll_N.new_zeros(len(batch.ids_BT)).index_add(0, row_N, nll_N)
