"""Make the collection: one expert after the other, its factors, then its gates.

Every finished part is a file named by its task; a part whose file was written under the same
recipe, rows and base model is not made again, and one that was stopped goes on from its last
checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossroads.adapters.bank import Expert, LoRA
from crossroads.adapters.collection.batches import training_batches
from crossroads.adapters.collection.recipe import BASE_MODEL, Recipe
from crossroads.adapters.collection.rows import place
from crossroads.adapters.collection.tasks import Task, get_task, task_names
from crossroads.adapters.experts import new_expert, train_expert
from crossroads.adapters.gates import train_gate
from crossroads.adapters.training import TrainSettings, steps_done
from crossroads.core.errors import unknown_name
from crossroads.core.files import replacing
from crossroads.core.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Made:
    """An expert of the collection and what its making took.

    Attributes
    ----------
    losses : of every step of the factors, nats a token
    seconds : CPU time of both parts, of their last uninterrupted stretch
    gate_spread : median over layers of the gate's standard deviation
    """

    expert: Expert
    losses: tuple[float, ...]
    seconds: float
    gate_spread: float


def make_collection(
    out: Path,
    recipe: Recipe,
    *,
    names: Sequence[str] | None = None,
    model: Any = None,
    tokenizer: Any = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Made]:
    """Return the experts of ``names``, by default of all held-in tasks, making what is missing.

    Raises UsageError for a task that is not held in, UnavailableError without data or base model.

    Parameters
    ----------
    out : folder of the parts
    model, tokenizer : of the base model; None = loaded when something is to be made
    progress : steps done and steps in all, of all experts
    say : called with a line when a part starts or goes on, and after it
    """
    known = task_names(held_in=True)
    for name in names or ():
        if name not in known:
            raise unknown_name("held-in task", name, known)
    tasks = [get_task(name) for name in names or known]
    whole = len(tasks) * (recipe.steps + recipe.gate_steps)
    base = _Base(model, tokenizer)
    made = []
    for number, task in enumerate(tasks):
        start = number * (recipe.steps + recipe.gate_steps)
        part = _Part(out=out, recipe=recipe, task=task, base=base, say=say or _nothing)
        made.append(part.make(_shifted(progress, start, whole)))
        if say:
            last = made[-1]
            say(
                f"{task.name}: loss {_mean(last.losses[:5]):.3f} -> {_mean(last.losses[-5:]):.3f}, "
                f"gate spread {last.gate_spread:.3f}, {last.seconds:.0f} CPU s"
            )
    return made


@dataclass
class _Base:
    """The base model and its tokenizer, loaded when first needed."""

    given_model: Any
    given_tokenizer: Any

    @property
    def model(self) -> Any:
        if self.given_model is None:
            from crossroads.models.smollm2_torch import load_smollm2

            self.given_model = load_smollm2()
        return self.given_model

    @property
    def tokenizer(self) -> Any:
        if self.given_tokenizer is None:
            from crossroads.models.smollm2_torch import smollm2_tokenizer

            self.given_tokenizer = smollm2_tokenizer()
        return self.given_tokenizer


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The making of one expert."""

    out: Path
    recipe: Recipe
    task: Task
    base: _Base
    say: Callable[[str], None]

    def make(self, progress: Progress) -> Made:
        steps = self.recipe.steps
        factors = self._kept("factors") or self._train_factors(progress)
        progress(steps, steps)
        bare = _expert(self.task, factors.tensors, self.recipe)
        gates = self._kept("gates") or self._train_gates(bare, _shifted(progress, steps, steps))
        progress(steps + self.recipe.gate_steps, steps)
        spread = torch.stack([gate_I.std() for gate_I in gates.tensors.values()]).median()
        return Made(
            expert=replace(bare, artifacts={"gate": gates.tensors}),
            losses=tuple(factors.facts["losses"]),
            seconds=factors.facts["seconds"] + gates.facts["seconds"],
            gate_spread=float(spread),
        )

    def _train_factors(self, progress: Progress) -> _File:
        begun = time.process_time()
        recipe = self.recipe
        self._say_start("factors", recipe.steps)
        expert, losses = train_expert(
            self.base.model,
            new_expert(
                self.base.model,
                self.task.name,
                targets=recipe.targets,
                rank=recipe.rank,
                alpha=recipe.alpha,
                # Drawn apart, as by contributors who never met: averages of factors mean nothing.
                seed=int(place(self.task.name, salt=str(recipe.seed)) * 2**31),
            ),
            training_batches(self.base.tokenizer, self.task, seed=recipe.seed),
            self._settings(recipe.steps),
            lr=recipe.lr,
            checkpoint=self._checkpoint("factors"),
            identity=self._key("factors"),
            progress=progress,
        )
        tensors: dict[str, Tensor] = {}
        for layer, lora in expert.modules.items():
            tensors |= {f"{layer}.A": lora.a_RI, f"{layer}.B": lora.b_OR}
        facts = {"losses": losses, "seconds": time.process_time() - begun}
        return self._keep("factors", tensors, facts)

    def _train_gates(self, expert: Expert, progress: Progress) -> _File:
        begun = time.process_time()
        self._say_start("gates", self.recipe.gate_steps)
        gated = train_gate(
            self.base.model,
            expert,
            training_batches(self.base.tokenizer, self.task, seed=self.recipe.seed),
            self._settings(self.recipe.gate_steps),
            lr=self.recipe.gate_lr,
            checkpoint=self._checkpoint("gates"),
            identity=self._key("gates"),
            progress=progress,
        )
        facts = {"seconds": time.process_time() - begun}
        return self._keep("gates", gated.artifacts["gate"], facts)

    def _say_start(self, part: str, steps: int) -> None:
        done = steps_done(self._checkpoint(part))
        how = f"going on at step {done} of {steps}" if done else f"starting, {steps} steps"
        self.say(f"{self.task.name}: {part}, {how}")

    def _settings(self, steps: int) -> TrainSettings:
        recipe = self.recipe
        return TrainSettings(
            steps=steps, warmup=min(recipe.warmup, steps), clip=recipe.clip, seed=recipe.seed
        )

    def _key(self, part: str) -> str:
        """Return a hash of all that a part depends on: of the factors, nothing about gates."""
        facts = self.recipe.facts()
        if part == "factors":
            facts = {name: fact for name, fact in facts.items() if not name.startswith("gate_")}
        told = json.dumps(
            [
                facts,
                self.task.fingerprint("train"),
                self.task.length,
                self.task.batch,
            ]
        )
        return hashlib.blake2b(told.encode(), digest_size=12).hexdigest()

    def _path(self, part: str) -> Path:
        return self.out / f"{self.task.name}.{part}.safetensors"

    def _checkpoint(self, part: str) -> Path:
        return self.out / f"{self.task.name}.{part}.{self._key(part)}.checkpoint"

    def _kept(self, part: str) -> _File | None:
        """Return a finished part, None where there is none of this recipe and these rows."""
        from safetensors import SafetensorError, safe_open

        path = self._path(part)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError):
            return None  # cut short or another program's: it is made again
        return _File(tensors=tensors, facts=facts) if facts.get("key") == self._key(part) else None

    def _keep(self, part: str, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> _File:
        from safetensors.torch import save_file

        facts = {"key": self._key(part), **facts}
        plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with replacing(self._path(part)) as draft:
            save_file(plain, draft, metadata={"facts": json.dumps(facts)})
        for done in self.out.glob(f"{self.task.name}.{part}.*.checkpoint"):
            done.unlink()
        self.say(f"{self.task.name}: {part} done, {facts['seconds']:.0f} CPU s")
        return _File(tensors=plain, facts=facts)


@dataclass(frozen=True, kw_only=True)
class _File:
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def _expert(task: Task, tensors: Mapping[str, Tensor], recipe: Recipe) -> Expert:
    layers = sorted(name.removesuffix(".A") for name in tensors if name.endswith(".A"))
    return Expert(
        name=task.name,
        modules={
            layer: LoRA(
                a_RI=tensors[f"{layer}.A"],
                b_OR=tensors[f"{layer}.B"],
                scale=recipe.alpha / recipe.rank,
            )
            for layer in layers
        },
        description=task.about,
        base_model=BASE_MODEL,
        info={"frame": task.frame},
    )


def _shifted(progress: Progress | None, start: int, whole: int) -> Progress:
    """Return the progress of a part as progress of the whole."""
    if progress is None:
        return lambda done, total: None
    return lambda done, total: progress(start + done, whole)


def _nothing(_: str) -> None:
    """Say nothing."""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
