"""Small courses of several domains, for routers that are trained: on a toy, and on SmolLM2.

The toy is a model of two blocks that has learnt to copy symbols, its domains shift them in four
ways that contradict each other (see ``skill_bed``). On SmolLM2 the domains are four tasks of the
collection with short rows, and only the last blocks are adapted, so that the backward pass is
short; the experts are trained here, not the shipped ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from crossroads.adapters.bank import AdapterBank, Expert
from crossroads.adapters.calls import calling
from crossroads.adapters.claims.skill_bed import ShiftTasks, base_model
from crossroads.adapters.collection.batches import batch_of_rows, fitting
from crossroads.adapters.collection.tasks import get_task
from crossroads.adapters.contract import Router
from crossroads.adapters.experts import new_expert
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.passes import Pass
from crossroads.adapters.texts import TextBatch, answer_nll
from crossroads.datasets.batches import batch_indices
from crossroads.models.smollm2_torch import load_smollm2, smollm2_tokenizer

SEEDS = (0, 1, 2)
BatchOf = Callable[[int], TextBatch]
_SHIFTS = ((3, 3, 3, 3), (5, 6, 1, 2), (1, 4, 7, 5), (6, 2, 4, 1))
_TASKS = ("clinc-a", "tatoeba-deu", "tatoeba-fra", "tatoeba-spa")
_LAST_BLOCKS = 6


class DomainBed(Protocol):
    """Domains to train on and to measure on.

    Attributes
    ----------
    names : of the domains
    description : one line
    lr, gate_lr : rates of adapters and of gates
    steps : of training an adapter, of training on the mixture of domains, and of training gates
    """

    names: tuple[str, ...]
    description: str
    lr: float
    gate_lr: float
    steps: tuple[int, int, int]

    def model(self, seed: int) -> Any:
        """Return the frozen base model."""

    def training(self, seed: int, domain: int | None = None) -> BatchOf:
        """Return batches of one domain, or of all mixed within a batch."""

    def test(self, domain: int, seed: int) -> Sequence[TextBatch]:
        """Return batches to measure on."""

    def expert(
        self, seed: int, name: str, *, targets: Sequence[str], rank: int, draw: int = 0
    ) -> Expert:
        """Return an untrained LoRA of scale 2; ``draw`` tells those of one seed apart."""


class ToyBed:
    """Four ways to shift symbols."""

    names: tuple[str, ...] = ("three on", "mixed 1", "mixed 2", "mixed 3")
    description = "a toy of two blocks that copies symbols, and four ways to shift them"
    lr: float = 1e-2
    gate_lr: float = 3e-2
    steps: tuple[int, int, int] = (150, 400, 60)
    rows = 32

    @cached_property
    def tasks(self) -> ShiftTasks:
        return ShiftTasks(shift_TK=torch.tensor(_SHIFTS))

    def model(self, seed: int) -> Any:
        return base_model(seed)

    def training(self, seed: int, domain: int | None = None) -> BatchOf:
        tasks = self.tasks if domain is None else self.tasks.only(domain)
        return tasks.training(self.rows, seed)

    def test(self, domain: int, seed: int) -> Sequence[TextBatch]:
        return [self.tasks.only(domain).test(256, seed)]

    def expert(
        self, seed: int, name: str, *, targets: Sequence[str], rank: int, draw: int = 0
    ) -> Expert:
        return new_expert(
            self.model(seed),
            name,
            targets=targets,
            rank=rank,
            alpha=2.0 * rank,
            seed=97 * seed + draw,
        )


class SmolBed:
    """Four tasks with short rows; adapters in the last blocks of SmolLM2-135M."""

    names: tuple[str, ...] = _TASKS
    description = (
        f"SmolLM2-135M, adapters in its last {_LAST_BLOCKS} blocks; test rows of "
        + ", ".join(_TASKS)
    )
    lr: float = 3e-3
    gate_lr: float = 3e-2
    steps: tuple[int, int, int] = (30, 60, 30)
    rows, test_rows = 12, 48

    @cached_property
    def _model(self) -> Any:
        return load_smollm2()

    def model(self, seed: int) -> Any:
        return self._model

    def training(self, seed: int, domain: int | None = None) -> BatchOf:
        tokenizer = smollm2_tokenizer()
        tasks = [get_task(name) for name in _TASKS]
        chosen = tasks if domain is None else [tasks[domain]]
        rows = [fitting(tokenizer, task, "train") for task in chosen]
        length = max(task.length for task in tasks)
        each = self.rows // len(chosen)

        def batch_of(step: int) -> TextBatch:
            drawn = [
                own[place]
                for own in rows
                for place in batch_indices(len(own), each, step=step, seed=seed)
            ]
            return batch_of_rows(tokenizer, drawn, length=length)

        return batch_of

    def test(self, domain: int, seed: int) -> Sequence[TextBatch]:
        task, tokenizer = get_task(_TASKS[domain]), smollm2_tokenizer()
        pool = fitting(tokenizer, task, "test")
        order = np.random.default_rng([seed, len(pool)]).permutation(len(pool))
        rows = [pool[place] for place in order[: self.test_rows]]
        return [
            batch_of_rows(tokenizer, rows[start : start + 16], length=task.length)
            for start in range(0, len(rows), 16)
        ]

    def expert(
        self, seed: int, name: str, *, targets: Sequence[str], rank: int, draw: int = 0
    ) -> Expert:
        whole = new_expert(
            self._model, name, targets=targets, rank=rank, alpha=2.0 * rank, seed=97 * seed + draw
        )
        first = self._model.config.num_hidden_layers - _LAST_BLOCKS
        kept = {
            layer: lora
            for layer, lora in whole.modules.items()
            if int(layer.split(".")[2]) >= first
        }
        return replace(whole, modules=kept)


def domain_nll(
    bed: DomainBed,
    seed: int,
    bank: AdapterBank | None,
    router: Router | None,
    *,
    domains: Sequence[int] | None = None,
    watch: Callable[[Pass], None] | None = None,
) -> list[float]:
    """Return nats per answer token of every domain; without a bank, of the base model.

    Routers are told nothing but the mask; ``watch`` sees every pass.
    """
    model = bed.model(seed)
    routed = RoutedModel(model, bank, router) if bank is not None and router is not None else None
    found = []
    try:
        for domain in domains if domains is not None else range(len(bed.names)):
            nlls = []
            for batch in bed.test(domain, seed):
                with torch.no_grad(), calling(mask=batch.mask_BT):
                    nlls.append(answer_nll(model, batch))
                    if watch and routed:
                        watch(routed.current)
            found.append(float(torch.cat(nlls).mean()))
    finally:
        if routed is not None:
            routed.unwrap()
    return found
