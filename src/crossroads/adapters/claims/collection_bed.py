"""The shipped experts as a bed for claims: routers on held-in and held-out tasks, paired seeds.

Held in are the tasks that experts were trained on (other rows of them), held out those that none
was. Every seed draws its own test rows, the same for all arms. A figure is the mean over tasks of
nats per answer token. Scores are kept by row in the user's cache, by the hash of the experts and of
this room's code, so that a measurement that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from crossroads.adapters.activations import record_activation
from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.collection.arms import arm_name, facts_of
from crossroads.adapters.collection.batches import training_batches
from crossroads.adapters.collection.evaluation import evaluate
from crossroads.adapters.collection.rows import Row
from crossroads.adapters.collection.scoring import Facts
from crossroads.adapters.collection.shipped import shipped_folder
from crossroads.adapters.collection.tasks import Task, get_task, task_names
from crossroads.adapters.contract import Router
from crossroads.adapters.fingerprints import code_fingerprint
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.layout import load_bank
from crossroads.adapters.routers import build_router
from crossroads.core.progress import progress_bar
from crossroads.core.statistics import Summary, paired_difference
from crossroads.models.embedding_cache import cache_folder
from crossroads.models.smollm2_torch import load_smollm2, smollm2_tokenizer

SEEDS = (0, 1, 2)
BASE = "base"  # the arm without any expert
Queries = Callable[[Task, Sequence[Row]], torch.Tensor]  # -> embeddings (rows, G)


class CollectionBed:
    """Arms measured on demand.

    Raises UnavailableError where no experts are shipped.

    Parameters
    ----------
    rows : test rows of every task and seed
    bank : experts named by their tasks, with gates and embeddings; None = the shipped ones
    held_in : names of the tasks that were trained on; None = those of the experts' names
    model : SmolLM2; None = loaded when first needed
    cache : folder of scores; None = the user's cache
    """

    def __init__(
        self,
        *,
        rows: int,
        bank: AdapterBank | None = None,
        held_in: Sequence[str] | None = None,
        model: Any = None,
        cache: Path | None = None,
    ) -> None:
        self.rows = rows
        self.bank = load_bank(shipped_folder()) if bank is None else bank
        self.held_in = tuple(held_in or self.bank.names)
        self._model = model
        self._cache = cache or cache_folder() / "adapters" / f"scores-{code_fingerprint()}"
        self._scores: dict[tuple[str, bool], dict[str, tuple[float, ...]]] = {}

    @property
    def model(self) -> Any:
        """SmolLM2, frozen, as it is outside of arms."""
        if self._model is None:
            self._model = load_smollm2()
        return self._model

    @cached_property
    def tokenizer(self) -> Any:
        return smollm2_tokenizer()

    @property
    def description(self) -> str:
        held_in, held_out = (len(self.tasks(held_in=h)) for h in (True, False))
        return (
            f"{len(self.bank.names)} LoRA experts on SmolLM2-135M; test rows of their {held_in} "
            f"tasks and of {held_out} tasks without expert, {self.rows} a task and seed"
        )

    def tasks(self, *, held_in: bool) -> list[Task]:
        """Return the tasks that were trained on, or those of no expert."""
        return [get_task(n) for n in (self.held_in if held_in else task_names(held_in=False))]

    def add_activations(self, batches: int) -> None:
        """Give experts their mean activations over the first training batches of their tasks."""
        with progress_bar("mean activations") as progress:
            for place, name in enumerate(self.bank.names):
                batch_of = training_batches(self.tokenizer, get_task(name), seed=0)
                expert = record_activation(
                    self.model, self.bank.expert(name), map(batch_of, range(batches))
                )
                self.bank.set_artifact(name, "activation", expert.artifacts["activation"])
                progress(place + 1, len(self.bank.names))

    def by_task(
        self, arm: str, *, held_in: bool, queries: Queries | None = None, name: str = ""
    ) -> Mapping[str, tuple[float, ...]]:
        """Return nats per answer token by task, a value a seed.

        ``arm`` is a router as users write it, or "base"; ``queries`` embed prompts otherwise than
        one by one, and then ``name`` says how.
        """
        key = (f"{arm} {name}".strip(), held_in)
        if key not in self._scores:
            self._scores[key] = self._measure(arm, held_in, queries, key[0])
        return self._scores[key]

    def means(self, arm: str, **how: Any) -> tuple[float, ...]:
        """Return the mean over tasks, a value a seed."""
        found = [*self.by_task(arm, **how).values()]
        return tuple(sum(values) / len(found) for values in zip(*found, strict=True))

    def difference(self, first: str, second: str, *, held_in: bool) -> Summary:
        """Return first - second of the means, seed by seed."""
        return paired_difference(
            self.means(first, held_in=held_in), self.means(second, held_in=held_in)
        )

    def closed(self, arm: str) -> tuple[float, ...]:
        """Return which share of the way from uniform to oracle an arm goes, held in, by seed."""
        uniform, oracle = (self.means(a, held_in=True) for a in ("uniform", "oracle"))
        return tuple(
            (u - mine) / (u - o)
            for u, o, mine in zip(uniform, oracle, self.means(arm, held_in=True), strict=True)
        )

    def routed(self, router: Router) -> RoutedModel:
        """Put a router and the experts into the model; ``unwrap`` it when done."""
        return RoutedModel(self.model, self.bank, router)

    def _measure(
        self, arm: str, held_in: bool, queries: Queries | None, key: str
    ) -> dict[str, tuple[float, ...]]:
        tasks = self.tasks(held_in=held_in)
        routed = None if arm == BASE else self.routed(build_router(arm))
        try:
            with progress_bar(f"{key} on {'held-in' if held_in else 'held-out'} tasks") as progress:
                scores = evaluate(
                    self.model,
                    self.tokenizer,
                    tasks,
                    arm=key if routed is None else f"{key} {arm_name(routed.router, self.bank)}",
                    rows=self.rows,
                    seeds=SEEDS,
                    facts={} if routed is None else self._facts(routed.router, tasks, queries),
                    cache=self._cache,
                    progress=progress,
                )
        finally:
            if routed is not None:
                routed.unwrap()
        found: dict[str, dict[int, float]] = {}
        for score in scores:
            found.setdefault(score.task, {})[score.seed] = score.nll
        return {task: tuple(by_seed[s] for s in SEEDS) for task, by_seed in found.items()}

    def _facts(
        self, router: Router, tasks: Sequence[Task], queries: Queries | None
    ) -> dict[str, Facts]:
        if queries is None:
            return {task.name: facts_of(router, self.bank, task) for task in tasks}
        return {task.name: partial(_told, queries, task) for task in tasks}


def _told(queries: Queries, task: Task, rows: Sequence[Row]) -> Mapping[str, Any]:
    return {"embedding": queries(task, rows)}
