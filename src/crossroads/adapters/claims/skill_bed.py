"""A small language model and tasks made of known parts, for routers that decide by task.

A task rewrites symbols one by one. Symbols are of four kinds; within its kind a symbol is shifted
around by a number that the task has for that kind. A sequence is a token that names the task, then
symbols, each followed by what it becomes, which is scored:

    [task] x1 y1 x2 y2 ... x6 y6        y = the symbol of x's kind, shift[task, kind] places on

The base model (two blocks of Llama's, width 64) has learnt to copy: all shifts 0, under every task
token. So a task without adapter is no better than guessing wherever it shifts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from crossroads.adapters.texts import TextBatch, answer_nll
from crossroads.adapters.training import Group, TrainSettings, train
from crossroads.core.progress import progress_bar

KINDS, OF_A_KIND = 4, 8
SYMBOLS = KINDS * OF_A_KIND
MOST_TASKS = 32
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_LENGTH = 6
_BASE_STEPS, _BASE_RATE, _BASE_ROWS = 250, 3e-3, 32
_TEST_SEED = 7_000_003  # rows to measure on are of a stream that no training batch is of


@dataclass(frozen=True, kw_only=True, eq=False)
class ShiftTasks:
    """Tasks by their shifts.

    Attributes
    ----------
    shift_TK : int64, places a symbol of each kind moves on
    first : the number of the first task's token; others follow
    """

    shift_TK: Tensor
    first: int = 0

    @classmethod
    def of_skills(cls, sets: Sequence[Sequence[int]], *, first: int = 0) -> ShiftTasks:
        """Return tasks by the skills each has; skill k moves symbols of kind k on by 3."""
        shift_TK = torch.zeros(len(sets), KINDS, dtype=torch.long)
        for row, skills in enumerate(sets):
            shift_TK[row, list(skills)] = 3
        return cls(shift_TK=shift_TK, first=first)

    def __len__(self) -> int:
        return len(self.shift_TK)

    def only(self, task: int) -> ShiftTasks:
        """Return one of them, with its token."""
        return ShiftTasks(shift_TK=self.shift_TK[task : task + 1], first=self.first + task)

    def batch(self, rows: int, seed: int) -> TextBatch:
        """Return sequences of tasks drawn alike, a function of ``seed``."""
        draw = torch.Generator().manual_seed(seed)
        task_B = torch.randint(0, len(self), (rows,), generator=draw)
        x_BT = torch.randint(0, SYMBOLS, (rows, _LENGTH), generator=draw)
        kind_BT = x_BT // OF_A_KIND
        moved_BT = (x_BT % OF_A_KIND + self.shift_TK[task_B].gather(1, kind_BT)) % OF_A_KIND
        ids_BT = torch.empty(rows, 1 + 2 * _LENGTH, dtype=torch.long)
        ids_BT[:, 0] = SYMBOLS + self.first + task_B
        ids_BT[:, 1::2], ids_BT[:, 2::2] = x_BT, kind_BT * OF_A_KIND + moved_BT
        answer_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        answer_BT[:, 2::2] = True
        return TextBatch(
            ids_BT=ids_BT,
            mask_BT=torch.ones_like(answer_BT),
            answer_BT=answer_BT,
            task_ids_B=task_B,
        )

    def training(self, rows: int, seed: int) -> Callable[[int], TextBatch]:
        """Return a function from a step to fresh rows."""
        return lambda step: self.batch(rows, seed * 1_000_003 + step)

    def few(self, batches: int, rows: int, seed: int) -> Callable[[int], TextBatch]:
        """Return a function from a step to one of a few batches, in turn: few-shot data."""
        kept = [self.batch(rows, seed * 1_000_003 + 500_000 + n) for n in range(batches)]
        return lambda step: kept[step % batches]

    def test(self, rows: int, seed: int) -> TextBatch:
        """Return rows to measure on."""
        return self.batch(rows, _TEST_SEED + seed)


def runs_of(run: Callable[[int], dict[str, float]], seeds: Sequence[int]) -> list[dict[str, float]]:
    """Return the figures of every seed, with a progress bar."""
    found: list[dict[str, float]] = []
    with progress_bar("seeds of small tasks") as progress:
        for seed in seeds:
            found.append(run(seed))
            progress(len(found), len(seeds))
    return found


@cache
def base_model(seed: int) -> Any:
    """Return the model that copies, frozen. Every arm of a seed takes the same one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=SYMBOLS + MOST_TASKS, hidden_size=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=1 + 2 * _LENGTH, pad_token_id=0, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    copying = ShiftTasks(shift_TK=torch.zeros(MOST_TASKS, KINDS, dtype=torch.long))
    batch_of = copying.training(_BASE_ROWS, seed)
    train(
        lambda step: answer_nll(model, batch_of(step)).mean(),
        [Group(parameters=[*model.parameters()], lr=_BASE_RATE)],
        TrainSettings(steps=_BASE_STEPS, seed=seed),
    )
    return model.eval()


@torch.no_grad()
def accuracy(model: Any, batch: TextBatch) -> float:
    """Return the share of scored symbols whose likeliest prediction is right."""
    scored = batch.answer_BT[:, 1:]
    logits_BTV = model(input_ids=batch.ids_BT, use_cache=False).logits[:, :-1]
    return float((logits_BTV.argmax(-1) == batch.ids_BT[:, 1:])[scored].float().mean())
