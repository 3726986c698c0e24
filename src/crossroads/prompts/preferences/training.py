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
_WINDOW = 8  # steps
_WIDTH = 32  # tokens
_MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Optimisation: AdamW, linear warm-up, linear decay to zero, gradients clipped at norm 1."""

    steps: int = 400
    batch: int = 8
    learning_rate: float = 1e-3
    warmup: int = 20
    rank: int = 12
    alpha: float = 24.0
    first_layer: int = FIRST_LAYER
    seed: int = 0
    checkpoint_every: int = 8
    recipe: Recipe = field(default_factory=Recipe)

    def facts(self) -> dict[str, Any]:
        """Return plain data for the adapter's file, without the wording."""
        facts = asdict(self)
        facts["recipe"].pop("wording")
        return {**facts, "targets": list(TARGETS)}


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

    Raises InputError where the checkpoint was written under other settings.

    Parameters
    ----------
    model, tokenizer : as ``crossroads.models.smollm2_torch`` gives them
    prompts : training questions by subject
    checkpoint : ``.pt`` file to go on from, and to write every ``checkpoint_every`` steps
    on_step : called with (step, loss)
    """
    parameters = add_lora(
        model,
        rank=settings.rank,
        alpha=settings.alpha,
        first_layer=settings.first_layer,
        seed=settings.seed,
    )
    optimiser = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=0.0)
    done = _resume(checkpoint, model, optimiser, settings)
    losses = []
    for step in range(done, settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings)
        loss = answer_loss(model, *draw_batch(tokenizer, prompts, settings, step))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
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


def draw_batch(
    tokenizer: Any, prompts: Prompts, settings: TrainingSettings, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and labels of one step, shape (B, T), padded on the right.

    The examples of ``_WINDOW`` steps are drawn together and dealt out by length, in random order
    of steps, so that rows of a batch are about equally long. T is a multiple of ``_WIDTH``, since
    every new shape costs the matrix library a preparation.
    """
    window, place = divmod(step, _WINDOW)
    rng = np.random.default_rng([settings.seed, window])
    examples = [
        _example(tokenizer, prompts, settings.recipe, rng) for _ in range(_WINDOW * settings.batch)
    ]
    examples.sort(key=lambda example: len(example[0]) + len(example[1]))
    first = int(rng.permutation(_WINDOW)[place]) * settings.batch
    rows = examples[first : first + settings.batch]
    longest = max(len(asked) + len(answer) for asked, answer in rows)
    ids_BT = torch.zeros(len(rows), math.ceil(longest / _WIDTH) * _WIDTH, dtype=torch.long)
    labels_BT = torch.full_like(ids_BT, _IGNORED)
    for row, (asked, answer) in enumerate(rows):
        both = torch.tensor(asked + answer)
        ids_BT[row, : len(both)] = both
        labels_BT[row, len(asked) : len(both)] = both[len(asked) :]
    return ids_BT, labels_BT


def _example(
    tokenizer: Any, prompts: Prompts, recipe: Recipe, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt and of its answer."""
    (dialogue,) = draw_dialogues(prompts, recipe, rng, 1)
    turns, route = dialogue.until(dialogue.num_user_turns - 1)
    texts = (prompt.head(dialogue.policies), prompt.tail(turns), prompt.name_text(route))
    start, end, answer = (
        list(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts
    )
    return start + end, answer


def answer_loss(model: Any, ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over labelled tokens, in nats.

    Only labelled positions reach the vocabulary: 49,152 logits a token would cost more than the
    network. Padding is on the right, where causal attention never looks.
    """
    hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    next_BT = labels_BT[:, 1:]
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
    arrays: dict[str, Any] = {
        "step": np.array(step),
        "settings": np.array(json.dumps(settings.facts())),
    }
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
