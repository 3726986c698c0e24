"""A router whose estimates can be read off the prompt, and requests to decide about."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import pytest

from crossroads.gateway.call import ANYBODY, Call, Client
from crossroads.gateway.contracts import Choice
from crossroads.gateway.policies import CompiledPolicies, PoliciesSettings, compile_policies
from crossroads.prompts import read_outcomes
from crossroads.prompts.decide import EXCLUDED
from crossroads.prompts.fitted import FittedRouter, fit_router
from crossroads.prompts.outcomes import OutcomeTable, prompt_hash
from crossroads.prompts.pool import ModelCard, Pool, read_pool
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet

T = TypeVar("T")
MODELS = ("small", "medium", "large")
_ROWS = 1200  # of the calibrated router's table
COSTS = (0.001, 0.01, 0.1)


@dataclass(kw_only=True)
class Stub(PromptRouter):
    """Estimates by words: ``easy`` suits all, ``hard`` the large; else a hash of the prompt.

    ``broken`` raises, ``no-large`` rules the large model out, ``wait`` waits for ``gate``.
    """

    name = "stub"
    needs_embeddings: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.models = MODELS
        self.batches: list[list[str]] = []
        self.threads: list[str] = []
        self.gate = threading.Event()

    def _predict(self, queries: Queries) -> npt.NDArray[np.float64]:
        assert queries.texts is not None
        self.batches.append(list(queries.texts))
        self.threads.append(threading.current_thread().name)
        return np.array([self._row(text) for text in queries.texts])

    def _row(self, text: str) -> list[float]:
        if "broken" in text:
            raise RuntimeError("a matrix is singular")
        if "wait" in text:
            assert self.gate.wait(10)
        if "easy" in text:
            return [0.9, 0.91, 0.92]
        row = [0.3, 0.6, 0.9] if "hard" in text else _hashed(text)
        return [*row[:2], EXCLUDED] if "no-large" in text else row

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None: ...

    def _state(self) -> Arrays:
        return {"nothing": np.zeros(1)}

    def _restore(self, arrays: Arrays) -> None: ...


def _hashed(text: str) -> list[float]:
    bits = prompt_hash(text)
    return [(bits >> shift & 1023) / 1023 for shift in (0, 10, 20)]


def stub(costs: tuple[float, ...] = COSTS) -> FittedRouter:
    return FittedRouter(
        router=Stub(), pool=Pool.of(MODELS), encoder="static", mean_cost=np.array(costs)
    )


def pool(**cards: Mapping[str, Any]) -> Pool:
    """Return a pool of the stub's models and ``other``; ``cards`` adds fields or models."""
    names = dict.fromkeys((*MODELS, "other", *cards))
    models = tuple(ModelCard(name=name, **cards.get(name, {})) for name in names)
    return Pool(name="test", models=models)


def compiled(
    policies: Mapping[str, Any],
    *,
    fallbacks: Mapping[str, Any] | None = None,
    models: Pool | None = None,
    router: FittedRouter | None = None,
    **more: Any,
) -> CompiledPolicies:
    """Compile plain settings; the router named ``stub`` is there."""
    settings = PoliciesSettings.model_validate({"policies": policies, "fallbacks": fallbacks or {}})
    routers = {"stub": router or stub()}
    return compile_policies(settings, models or pool(), routers=routers, **more)


def call(
    model: str = "auto",
    text: Any = "easy",
    *,
    headers: Mapping[str, str] | None = None,
    client: Client = ANYBODY,
    number: int | None = None,
    size: int = 100,
    dialect: Any = "chat",
    **body: Any,
) -> Call:
    """Return a request; ``number`` fixes its decision id."""
    given = {name.encode(): value.encode() for name, value in (headers or {}).items()}
    fields: dict[str, Any] = {} if number is None else {"id": f"dec_{number:032x}"}
    messages = body.pop("messages", [{"role": "user", "content": text}])
    return Call(
        dialect=dialect,
        model=model,
        body={"messages": messages, **body},
        headers=given,
        client=client,
        size=size,
        **fields,
    )


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return asyncio.run(work())


def choose(policies: CompiledPolicies, *calls: Call, price: float = 0.0) -> list[Choice]:
    """Decide one after the other, in one event loop."""

    async def work() -> list[Choice]:
        return [await policies.choose(call, cost_price=price) for call in calls]

    return run(work)


def choose_one(policies: CompiledPolicies, given: Call, price: float = 0.0) -> Choice:
    return choose(policies, given, price=price)[0]


LEARNED: dict[str, Any] = {"kind": "learned", "router": "stub"}


@pytest.fixture(scope="session")
def knn() -> FittedRouter:
    """A router fitted on the outcomes that ship, with the shipped pool."""
    return fit_router("knn", read_outcomes("local"), pool=read_pool("local"))


@pytest.fixture(scope="session")
def calibrated() -> FittedRouter:
    """A router with a verifier that accepts some of its choices."""
    rng = np.random.default_rng(0)
    colours = ("red", "green", "blue", "white", "black")
    texts = []
    for n in range(_ROWS):
        if n % 2:
            texts.append(f"What is {rng.integers(999)} times {rng.integers(999)}? sum {n}")
        else:
            texts.append(f"Describe a {rng.choice(colours)} flower in the garden, poem {n}")
    score = np.zeros((_ROWS, 2), dtype=np.float32)
    score[::2, 0] = 1.0  # the first is right about flowers, nobody about sums
    table = OutcomeTable(
        prompt_ids=np.array([str(n) for n in range(_ROWS)], dtype=object),
        models=("small", "large"),
        score=score,
        prompt_hash=np.array([prompt_hash(text) for text in texts], dtype=np.uint64),
        texts=np.array(texts, dtype=object),
        cost=np.tile(np.array([0.001, 0.1]), (_ROWS, 1)),
    )
    return fit_router("knn", table, calibrate="sdm", level=0.9)
