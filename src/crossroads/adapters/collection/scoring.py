"""How well a model answers: likelihood of the answer, and the option it finds likeliest.

All options of a row are scored in one forward pass: they stand one after the other behind the
prompt, each sees the prompt and itself, and positions go on from the prompt's end for each of them.
Routing by token is what it would be with each option alone; a router that sums up a sequence reads
the prompt through ``facts``. Options of one token each add nothing to the prompt's cost.

Axes: B rows of a batch, T positions, S scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.adapters.calls import calling
from crossroads.adapters.collection.rows import Row
from crossroads.core.errors import InputError
from crossroads.core.progress import Progress

Facts = Callable[[Sequence[Row]], Mapping[str, Any]]  # rows -> arguments of ``calling``
_TOKENS = 1024  # of a batch, padding counted


@dataclass(frozen=True, kw_only=True, slots=True)
class RowScore:
    """What a model makes of one row.

    Attributes
    ----------
    nll : negative log-likelihood of the answer, nats, summed over its ``tokens``
    right_by_sum, right_by_mean : whether the answer is the likeliest option by the sum and by the
        mean of its tokens' log-probabilities (the earlier one among equals); None without options
    """

    nll: float
    tokens: int
    right_by_sum: bool | None = None
    right_by_mean: bool | None = None


def score_rows(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    facts: Facts | None = None,
    progress: Progress | None = None,
) -> list[RowScore]:
    """Return the scores of rows, in their order.

    Raises InputError for a row without a prompt or with an empty answer.

    Parameters
    ----------
    model : causal language model of transformers, with routed adapters in it or without
    tokenizer : ``tokenizers.Tokenizer``
    facts : what is said to routers about the rows of a batch; their mask is added
    """
    packed = [_packed(tokenizer, row) for row in rows]
    scores: dict[int, RowScore] = {}
    for places in _batches([len(one.ids) for one in packed]):
        told = facts([rows[p] for p in places]) if facts else {}
        found = _score(model, [packed[p] for p in places], told)
        for place, logs in zip(places, found, strict=True):
            scores[place] = _row_score(rows[place], logs)
        if progress:
            progress(len(scores), len(rows))
    return [scores[place] for place in range(len(rows))]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Packed:
    """A prompt and its options in one sequence.

    Attributes
    ----------
    ids, positions : of the tokens that are read
    parts : 0 for the prompt's tokens, j + 1 for those of option j
    asked : (place of the token before, token) of every scored token, by option
    """

    ids: list[int]
    positions: list[int]
    parts: list[int]
    asked: list[list[tuple[int, int]]]


def _packed(tokenizer: Any, row: Row) -> _Packed:
    prompt = tokenizer.encode(row.prompt, add_special_tokens=False).ids
    if not prompt:
        raise InputError(f"row with answer {row.answer[:40]!r}: has no prompt; give it one token")
    ids, positions, parts = list(prompt), list(range(len(prompt))), [0] * len(prompt)
    asked = []
    for number, text in enumerate(row.options or (row.answer,), start=1):
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        if not tokens:
            raise InputError(f"row with prompt {row.prompt[:40]!r}: an answer has no tokens")
        before = [len(prompt) - 1, *range(len(ids), len(ids) + len(tokens) - 1)]
        asked.append(list(zip(before, tokens, strict=True)))
        read = tokens[:-1]  # what follows the last one is not asked
        ids += read
        positions += range(len(prompt), len(prompt) + len(read))
        parts += [number] * len(read)
    return _Packed(ids=ids, positions=positions, parts=parts, asked=asked)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield places of rows of about one length, at most ``_TOKENS`` with their padding."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda p: (lengths[p], p)):
        if batch and lengths[place] * (len(batch) + 1) > _TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _score(
    model: nn.Module, packed: Sequence[_Packed], told: Mapping[str, Any]
) -> list[list[list[float]]]:
    """Return the log-probability of every scored token, by row and option."""
    width = max(len(one.ids) for one in packed)
    ids_BT = torch.zeros(len(packed), width, dtype=torch.long)
    position_BT, part_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT)
    mask_BT = torch.zeros(len(packed), width, dtype=torch.bool)
    for row, one in enumerate(packed):
        end = len(one.ids)
        ids_BT[row, :end] = torch.tensor(one.ids)
        position_BT[row, :end] = torch.tensor(one.positions)
        part_BT[row, :end] = torch.tensor(one.parts)
        mask_BT[row, :end] = True
    with torch.no_grad(), calling(mask=mask_BT, **told):
        hidden_BTD = model.base_model(
            input_ids=ids_BT,
            attention_mask=_sight(part_BT, mask_BT),
            position_ids=position_BT,
            use_cache=False,
        ).last_hidden_state
        flat = [
            (row, before, token)
            for row, one in enumerate(packed)
            for option in one.asked
            for before, token in option
        ]
        row_S, before_S, token_S = torch.tensor(flat).T
        logits_SV = model.get_output_embeddings()(hidden_BTD[row_S, before_S]).float()
        log_S = -nn.functional.cross_entropy(logits_SV, token_S, reduction="none")
    left = iter(log_S.tolist())
    return [[[next(left) for _ in option] for option in one.asked] for one in packed]


def _sight(part_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the additive attention mask (B, 1, T, T): earlier tokens of the prompt and one's own
    option; padding sees itself alone.
    """
    width = part_BT.shape[1]
    is_earlier_TT = torch.ones(width, width, dtype=torch.bool).tril()
    is_near_BTT = (part_BT[:, None, :] == 0) | (part_BT[:, None, :] == part_BT[:, :, None])
    seen_BTT = is_earlier_TT & is_near_BTT & mask_BT[:, None, :]
    seen_BTT |= torch.eye(width, dtype=torch.bool)
    hidden = torch.finfo(torch.float32).min
    return torch.where(seen_BTT, 0.0, hidden)[:, None]


def _row_score(row: Row, logs: Sequence[Sequence[float]]) -> RowScore:
    sums = [sum(option) for option in logs]
    if row.options is None:
        return RowScore(nll=-sums[0], tokens=len(logs[0]))
    means = [total / len(option) for total, option in zip(sums, logs, strict=True)]
    right = row.right
    return RowScore(
        nll=-sums[right],
        tokens=len(logs[right]),
        right_by_sum=sums.index(max(sums)) == right,
        right_by_mean=means.index(max(means)) == right,
    )
