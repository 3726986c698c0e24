"""Train the adapter: next-token cross-entropy on the answer, given routes and conversation.

Batches are drawn from the recipe as they are needed, each from its own seed, so that a run that
stops at any step goes on with what it would have seen. The checkpoint holds adapter and optimiser.
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
from crossroads.prompts.preferences.lora import TARGETS, add_lora, lora_parameters
from crossroads.prompts.preferences.synthetic import Prompts, Recipe, draw_dialogue

_IGNORED = -100  # label of a token that is not predicted
_MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Optimisation: AdamW, linear warm-up, linear decay to zero, gradients clipped at norm 1."""

    steps: int = 300
    batch: int = 8
    learning_rate: float = 1e-3
    warmup: int = 20
    rank: int = 8
    alpha: float = 16.0
    seed: int = 0
    checkpoint_every: int = 25
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
        ids_BT, labels_BT = draw_batch(tokenizer, prompts, settings, step)
        loss = answer_loss(model, ids_BT, labels_BT)
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


def draw_batch(
    tokenizer: Any, prompts: Prompts, settings: TrainingSettings, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and labels of one step, shape (B, T), padded on the right."""
    rng = np.random.default_rng([settings.seed, step])
    rows = []
    for _ in range(settings.batch):
        dialogue = draw_dialogue(prompts, settings.recipe, rng)
        turns, route = dialogue.until(dialogue.num_user_turns - 1)
        asked = _ids(tokenizer, prompt.head(dialogue.policies)) + _ids(
            tokenizer, prompt.tail(turns)
        )
        answer = _ids(tokenizer, prompt.name_text(route))
        rows.append((asked + answer, [_IGNORED] * len(asked) + answer))
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    labels_BT = torch.tensor([lab + [_IGNORED] * (longest - len(lab)) for _, lab in rows])
    return ids_BT, labels_BT


def answer_loss(model: Any, ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over labelled tokens, in nats.

    Only labelled positions reach the vocabulary: 49,152 logits for every token would cost more
    than the network. Padding is on the right, where causal attention never looks.
    """
    hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    is_asked_BT = labels_BT[:, 1:] != _IGNORED
    logits = nn.functional.linear(hidden_BTD[:, :-1][is_asked_BT], model.lm_head.weight)
    return nn.functional.cross_entropy(logits.float(), labels_BT[:, 1:][is_asked_BT])


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


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
