"""Train the adapter: next-token cross-entropy on the answer, given routes and conversation.

Batches are drawn from the recipe as they are needed, each from its own seed, so that a run that
stopped goes on with what it would have seen. The checkpoint holds adapter and optimiser.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from crossroads.core.errors import InputError
from crossroads.core.files import replacing
from crossroads.core.progress import Progress
from crossroads.prompts.preferences import prompt
from crossroads.prompts.preferences.lora import FIRST_LAYER, TARGETS, add_lora, lora_parameters
from crossroads.prompts.preferences.synthetic import Prompts, Recipe, draw_dialogues

_IGNORED = -100  # label of a token that is not predicted
_WIDTH = 64  # tokens
_MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Optimisation: AdamW, linear warm-up, linear decay to zero, gradients clipped at norm 1."""

    steps: int = 64
    route_sets: int = 4
    conversations: int = 4  # with each route set
    learning_rate: float = 1e-3
    warmup: int = 6
    rank: int = 12
    alpha: float = 24.0
    seed: int = 0
    checkpoint_every: int = 8
    recipe: Recipe = field(default_factory=Recipe)

    def facts(self) -> dict[str, Any]:
        """Return plain data for the adapter's file, without the wording."""
        facts = asdict(self)
        facts["recipe"].pop("wording")
        return {**facts, "targets": list(TARGETS), "first_layer": FIRST_LAYER}


def train(
    model: Any,
    tokenizer: Any,
    prompts: Prompts,
    settings: TrainingSettings,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Add an adapter to ``model`` and train it; return the loss of each step done now.

    Parameters
    ----------
    model, tokenizer : as ``crossroads.models.smollm2_torch`` gives them
    prompts : training questions by subject
    checkpoint : ``.pt`` file to go on from, and to write every ``checkpoint_every`` steps
    on_step : called with (step, loss)

    Raises InputError where the checkpoint was written under other settings.
    """
    parameters = add_lora(
        model, rank=settings.rank, alpha=settings.alpha, seed=settings.seed
    )
    optimiser = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=0.0)
    done = _resume(checkpoint, model, optimiser, settings)
    losses = []
    for step in range(done, settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings)
        loss = answer_loss(model, draw_batch(tokenizer, prompts, settings, step))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        if on_step:
            on_step(step, losses[-1])
        if checkpoint and (step + 1) % settings.checkpoint_every == 0:
            _write(checkpoint, model, optimiser, settings, step + 1)
        if progress:
            progress(step + 1, settings.steps)
    return losses


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B route sets, each with its conversations behind it in one row of T tokens.

    Attributes
    ----------
    ids_BT, labels_BT : tokens, and those to predict (-100 elsewhere)
    positions_BT : every conversation starts where the routes end
    mask_B1TT : bool; True where a token (third axis) may look at another (last axis): the routes
        and its own conversation, never a neighbour's
    """

    ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    positions_BT: torch.Tensor
    mask_B1TT: torch.Tensor


def draw_batch(tokenizer: Any, prompts: Prompts, settings: TrainingSettings, step: int) -> Batch:
    """Return the batch of one step; the routes' tokens are computed once for a whole row.

    T is a multiple of 64, since every new shape costs the matrix library a preparation.
    """
    rng = np.random.default_rng([settings.seed, step])
    rows = [_row(tokenizer, prompts, settings, rng) for _ in range(settings.route_sets)]
    width = math.ceil(max(len(row[0]) for row in rows) / _WIDTH) * _WIDTH
    shape = (len(rows), width)
    ids_BT = torch.zeros(shape, dtype=torch.long)
    labels_BT = torch.full(shape, _IGNORED)
    positions_BT = torch.zeros(shape, dtype=torch.long)
    part_BT = torch.full(shape, -1)  # 0 the routes, then 1, 2, ... the conversations; -1 padding
    for target, number in ((ids_BT, 0), (labels_BT, 1), (positions_BT, 2), (part_BT, 3)):
        for row, values in zip(target, rows, strict=True):
            row[: len(values[number])] = torch.tensor(values[number])
    is_seen_BTT = (part_BT[:, None, :] == 0) | (part_BT[:, None, :] == part_BT[:, :, None])
    mask_BTT = is_seen_BTT & torch.ones(width, width, dtype=torch.bool).tril()
    return Batch(
        ids_BT=ids_BT, labels_BT=labels_BT, positions_BT=positions_BT, mask_B1TT=mask_BTT[:, None]
    )


def _row(
    tokenizer: Any, prompts: Prompts, settings: TrainingSettings, rng: np.random.Generator
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return tokens, labels, positions and parts of one route set with its conversations."""
    dialogues = draw_dialogues(prompts, settings.recipe, rng, settings.conversations)
    ids = _encode(tokenizer, prompt.head(dialogues[0].policies))
    start = len(ids)
    labels, positions, parts = [_IGNORED] * start, list(range(start)), [0] * start
    for number, dialogue in enumerate(dialogues, start=1):
        turns, route = dialogue.until(dialogue.num_user_turns - 1)
        asked = _encode(tokenizer, prompt.tail(turns))
        answer = _encode(tokenizer, prompt.name_text(route))
        length = len(asked) + len(answer)
        ids += asked + answer
        labels += [_IGNORED] * len(asked) + answer
        positions += range(start, start + length)
        parts += [number] * length
    return ids, labels, positions, parts


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def answer_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy over labelled tokens, in nats.

    Only labelled positions reach the vocabulary: 49,152 logits for every token would cost more
    than the network.
    """
    hidden_BTD = model.model(
        input_ids=batch.ids_BT,
        position_ids=batch.positions_BT,
        attention_mask=batch.mask_B1TT,
        use_cache=False,
    ).last_hidden_state
    next_BT = batch.labels_BT[:, 1:]
    is_asked_BT = next_BT != _IGNORED
    logits = nn.functional.linear(hidden_BTD[:, :-1][is_asked_BT], model.lm_head.weight)
    return nn.functional.cross_entropy(logits.float(), next_BT[is_asked_BT])


def _schedule(step: int, settings: TrainingSettings) -> float:
    rising = (step + 1) / settings.warmup if settings.warmup else math.inf
    return min(rising, (settings.steps - step) / settings.steps, 1.0)


def _write(
    path: Path, model: Any, optimiser: torch.optim.Optimizer, settings: TrainingSettings, step: int
) -> None:
    """Write adapter and Adam's two moments as plain arrays."""
    arrays = {"step": np.array(step), "settings": np.array(json.dumps(settings.facts()))}
    for name, parameter in lora_parameters(model):
        moments = optimiser.state[parameter]
        arrays[f"{name}.value"] = parameter.detach().numpy()
        arrays |= {f"{name}.{key}": moments[key].numpy() for key in _MOMENTS}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def _resume(
    path: Path | None, model: Any, optimiser: torch.optim.Optimizer, settings: TrainingSettings
) -> int:
    """Return the step to go on with, 0 without a checkpoint."""
    if path is None or not path.is_file():
        return 0
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "settings"}
        written_under = str(file["settings"])
    if written_under != json.dumps(settings.facts()):
        raise InputError(
            f"checkpoint {path}: written under other settings; remove it or choose another file"
        )
    step = int(arrays["step"])
    with torch.no_grad():
        for name, parameter in lora_parameters(model):
            parameter.copy_(arrays[f"{name}.value"])
            moments = {key: arrays[f"{name}.{key}"] for key in _MOMENTS}
            optimiser.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return step
