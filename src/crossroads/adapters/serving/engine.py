"""Answers of a routed model: one thread writes, one request after the other.

Requests wait in line; beyond a bound they are refused. A request that is given up stops at the next
token.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.base_models import BaseModel, as_text
from crossroads.adapters.choice import told
from crossroads.adapters.contract import Router
from crossroads.adapters.generating import TextStream, generate
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.passes import Pass
from crossroads.adapters.routers.named import Named
from crossroads.adapters.serving.openable import gives_way, openable
from crossroads.adapters.serving.wishes import RefusedError, Wish
from crossroads.adapters.shares import shares_of
from crossroads.core.errors import CrossroadsError, UsageError

BASE = "base"


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A part of an answer; the last one has ``finish`` and the counts.

    ``experts`` are the shares of the routing weights over the prompt.
    """

    text: str
    finish: Literal["stop", "length"] | None = None
    prompt_tokens: int = 0
    answer_tokens: int = 0
    experts: dict[str, float] = field(default_factory=dict)


class Engine:
    """A routed model that answers.

    Raises UsageError for a router that has to be told the expert or the task of every prompt,
    InputError for one that cannot run, as where prompts are embedded by another encoder.

    Parameters
    ----------
    name : of the routed model; ``name:base`` is the base model, ``name:EXPERT`` one expert alone
    router : decides where the request does not
    plain : messages are joined as text, not put into the model's chat form
    max_waiting : requests in line behind the one that is answered; further ones are refused
    """

    def __init__(
        self,
        base: BaseModel,
        bank: AdapterBank,
        router: Router,
        *,
        name: str,
        plain: bool = False,
        max_waiting: int = 64,
    ) -> None:
        if router.call_data & {"experts", "labels_B"}:
            raise UsageError(
                f"router {router.name}: does not choose, it is told every prompt's own expert; "
                "serve another one, and clients name an adapter themselves, as in "
                f"{name}:{bank.names[0]}"
            )
        facts = told(router, bank, [name])  # one that cannot be told otherwise fails here
        self.base, self.bank, self.router, self.name = base, bank, router, name
        self._write = as_text if plain else base.chat
        self._max_waiting, self._open = max_waiting, 0
        self._can_choose = gives_way(router, bank)
        self._routed = RoutedModel(base.model, bank, openable(router, bank))
        list(
            generate(base, self._routed.router, [0], most=1, facts=facts)
        )  # and one that cannot run
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapters")

    @property
    def models(self) -> list[str]:
        """The names clients may ask for."""
        own = [f"{self.name}:{expert}" for expert in self.bank.names] if self._can_choose else []
        return [self.name, f"{self.name}:{BASE}", *own]

    def router_of(self, model: str) -> str | None:
        """Return the router that decides for a model's name; None for the base model alone."""
        chosen = self._chosen(model)
        return None if chosen == BASE else Named.name if chosen else self.router.name

    def check(self, wish: Wish) -> None:
        """Raise RefusedError for a model that is not here, or a line that is full."""
        if wish.model not in self.models:
            raise RefusedError(
                f"model {wish.model!r} does not exist; there is: {', '.join(self.models)}",
                param="model", code="model_not_found", status=404,
            )  # fmt: skip
        if self._open > self._max_waiting:  # one of them is being answered
            raise RefusedError(
                f"the line is full: at most {self._max_waiting} requests wait; try again later",
                code="overloaded", status=503,
            )  # fmt: skip

    async def answer(self, wish: Wish) -> AsyncGenerator[Piece, None]:
        """Yield the answer as it is written. Raises RefusedError."""
        self.check(wish)
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
        given_up = threading.Event()

        def hand_over(item: Piece | Exception | None) -> None:
            if not given_up.is_set():
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        def work() -> None:
            try:
                self._answer(wish, hand_over, given_up)
            except Exception as error:  # noqa: BLE001 - handed to the caller below
                hand_over(error)
            else:
                hand_over(None)

        self._open += 1
        task = self._thread.submit(work)
        try:
            while (item := await arrived.get()) is not None:
                if isinstance(item, CrossroadsError):
                    raise _refused(item) from item
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            given_up.set()
            task.cancel()
            self._open -= 1

    def close(self) -> None:
        """Wait for the request that is being written, and give the base model back."""
        self._thread.shutdown(cancel_futures=True)
        self._routed.unwrap()

    def _answer(self, wish: Wish, take: Callable[[Piece], None], given_up: threading.Event) -> None:
        text = self._write(wish.messages) if wish.kind == "chat" else wish.messages[0]["content"]
        ids = self.base.tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) >= self.base.context:
            raise RefusedError(
                f"the prompt has {len(ids)} tokens, the model reads {self.base.context}; shorten "
                "it",
                code="context_length_exceeded",
            )
        stream = TextStream(self.base.tokenizer, wish.stops)
        first: list[Pass] = []  # the one that reads the prompt

        def watch(one: Pass) -> None:
            if not first:
                first.append(one)

        count = 0
        with ExitStack() as around:
            facts = self._facts(wish, around)
            around.enter_context(self._routed.watched(watch))
            for token in generate(
                self.base, self._routed.router, ids,
                most=wish.most, sampling=wish.sampling, facts=facts,
            ):  # fmt: skip
                count += 1
                if said := stream.add(token):
                    take(Piece(text=said))
                if stream.is_stopped or given_up.is_set():
                    break
        full = count == wish.most or len(ids) + count >= self.base.context
        take(
            Piece(
                text=stream.finish(),
                finish="length" if full and not stream.is_stopped else "stop",
                prompt_tokens=len(ids),
                answer_tokens=count,
                experts=shares_of(self._routed, first[0]).experts if first else {},
            )
        )

    def _facts(self, wish: Wish, around: ExitStack) -> dict[str, Any]:
        """Return what is said about the request; a named expert goes before the router."""
        chosen = self._chosen(wish.model)
        if chosen == BASE:
            around.enter_context(self._routed.disabled())
            return {}
        if chosen:
            return {"experts": [chosen]}
        return told(self.router, self.bank, [wish.asked])

    def _chosen(self, model: str) -> str:
        """Return what stands behind the colon of a model's name, nothing where there is none."""
        return model.removeprefix(self.name).removeprefix(":")


def _refused(error: CrossroadsError) -> RefusedError:
    if isinstance(error, RefusedError):
        return error
    return RefusedError(" ".join(str(error).split()))
