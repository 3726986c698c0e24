"""Asking experts: concurrently, within the bounds, again after failures that may pass, and with
every answer on the disk before it counts."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from crossroads.core.progress import Progress
from crossroads.prompts.collect.limits import Budget, RateLimiter
from crossroads.prompts.collect.partial import PartialFile
from crossroads.prompts.collect.report import Failure
from crossroads.prompts.collect.settings import EVERY_MODEL, CollectSettings
from crossroads.prompts.experts.base import Completion, Expert, ExpertError, content_text
from crossroads.prompts.experts.registry import build_expert
from crossroads.prompts.pool import ModelCard, Pool

Cells = dict[str, dict[str, Any]]

_CHARACTERS_A_TOKEN = 4  # of English; only bounds and estimates use it, never the table


@dataclass(frozen=True, kw_only=True)
class Call:
    """One question to one expert.

    Attributes
    ----------
    card : who is asked
    request : in OpenAI's chat-completion shape
    prompt_id, about : whose cell it is, and of which model the answer is about
    is_grade : whether it grades an answer rather than gives one
    """

    card: ModelCard
    request: Mapping[str, Any]
    prompt_id: str
    about: str
    is_grade: bool = False

    @property
    def key(self) -> str:
        """All that the answer depends on, so that nothing stale is reused."""
        card = self.card
        parts = [self.prompt_id, card.name, card.endpoint, card.upstream_model, self.request]
        return hashlib.blake2b(orjson.dumps(parts), digest_size=16).hexdigest()

    @property
    def input_characters(self) -> int:
        return sum(len(message["content"]) for message in self.request["messages"])

    @property
    def expected_tokens(self) -> tuple[int, int]:
        """Tokens in, about; tokens out, at most."""
        return -(-self.input_characters // _CHARACTERS_A_TOKEN), self.request["max_tokens"]

    @property
    def highest_cost(self) -> float:
        """What the call costs at most: a token holds a byte or more."""
        size = sum(len(message["content"].encode()) for message in self.request["messages"])
        overhead = 16 * (len(self.request["messages"]) + 1)  # marks of roles and turns
        return float(self.card.price(size + overhead, self.request["max_tokens"]))


class Caller:
    """Runs calls. ``cells`` holds the finished ones by key, those of earlier runs included."""

    def __init__(self, pool: Pool, settings: CollectSettings, partial: PartialFile) -> None:
        self._settings = settings
        self._partial = partial
        self.cells: Cells = partial.read()
        self._writing = asyncio.Lock()
        self._limiters = {card.name: _limiter(card, settings) for card in pool}
        self._budget = Budget(settings.max_cost)
        self.failures: list[Failure] = []
        self.num_unasked = 0  # for want of money

    def count_spent(self, calls: Sequence[Call]) -> None:
        """Charge the budget with the calls that earlier runs have paid."""
        for call in {call.key: call for call in calls if call.key in self.cells}.values():
            self._budget.spent += _paid(call, self.cells[call.key])

    async def run(self, calls: Sequence[Call], *, progress: Progress | None = None) -> None:
        """Ask whatever has no cell yet; failures are kept in ``failures``."""
        wanted = {call.key: call for call in calls if call.key not in self.cells}
        queues: dict[str, deque[Call]] = {}
        for call in wanted.values():
            queues.setdefault(call.card.name, deque()).append(call)
        counter = _Counter(len(calls) - len(wanted), len(calls), progress)
        cards = {call.card.name: call.card for call in wanted.values()}
        timeouts = self._settings.timeouts
        experts = {name: build_expert(card, timeouts=timeouts) for name, card in cards.items()}
        try:
            for expert in experts.values():
                await expert.start()
            async with asyncio.TaskGroup() as group:
                for name, queue in queues.items():
                    for _ in range(min(self._settings.concurrency, len(queue))):
                        group.create_task(self._work(experts[name], queue, counter))
        except ExceptionGroup as group_of_errors:  # the tasks were stopped by the first of them
            raise group_of_errors.exceptions[0] from None
        finally:
            for expert in experts.values():
                await expert.close()

    async def _work(self, expert: Expert, queue: deque[Call], counter: _Counter) -> None:
        while queue:
            call = queue.popleft()
            try:
                cell = await self._ask(expert, call)
            except ExpertError as error:
                self.failures.append(
                    Failure(prompt_id=call.prompt_id, model=call.card.name, error=str(error))
                )
            else:
                if cell is None:
                    self.num_unasked += 1
                    continue
                async with self._writing:
                    await asyncio.to_thread(self._partial.append, cell)
                self.cells[call.key] = cell
            counter.add()

    async def _ask(self, expert: Expert, call: Call) -> dict[str, Any] | None:
        """Ask one expert, again after failures that may pass; None where the money is spent."""
        limiter, settings = self._limiters[call.card.name], self._settings
        for attempt in range(settings.num_retries + 1):
            if not await self._budget.reserve(call.highest_cost):
                return None
            paid = 0.0
            try:
                ticket = await limiter.admit(sum(call.expected_tokens))
                started = time.perf_counter()
                answer = await expert.complete(call.request)
                cell = _cell(call, answer, time.perf_counter() - started)
                paid = _paid(call, cell)
                counts = (cell["input_tokens"], cell["output_tokens"])
                if None not in counts:
                    ticket.tokens = sum(counts)
                return cell
            except ExpertError as error:
                wait = error.retry_after or settings.backoff * 2**attempt
                is_last = attempt == settings.num_retries or wait > settings.longest_wait
                if is_last or not error.can_be_retried:
                    raise
                if error.retry_after:
                    limiter.pause(wait)
            finally:
                await self._budget.settle(call.highest_cost, paid)
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


@dataclass
class _Counter:
    done: int
    total: int
    progress: Progress | None

    def add(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


def cost_of(card: ModelCard, cell: Mapping[str, Any]) -> float | None:
    """Return the price of a cell, None where it depends on tokens nobody counted."""
    tokens_in, tokens_out = cell["input_tokens"], cell["output_tokens"]
    unknown = (card.price_in and tokens_in is None) or (card.price_out and tokens_out is None)
    return None if unknown else round(float(card.price(tokens_in or 0, tokens_out or 0)), 12)


def _paid(call: Call, cell: Mapping[str, Any]) -> float:
    """Return what a call cost; its worst case where the endpoint does not count tokens."""
    cost = cost_of(call.card, cell)
    return call.highest_cost if cost is None else cost


def _limiter(card: ModelCard, settings: CollectSettings) -> RateLimiter:
    """Bounds of the settings, for this model or for every one, else those of its card."""
    requests, tokens = settings.requests_per_minute, settings.tokens_per_minute
    return RateLimiter(
        requests=requests.get(card.name, requests.get(EVERY_MODEL, card.requests_per_minute)),
        tokens=tokens.get(card.name, tokens.get(EVERY_MODEL, card.tokens_per_minute)),
    )


def _cell(call: Call, answer: Completion, seconds: float) -> dict[str, Any]:
    usage = answer.get("usage") or {}
    cell = {
        "cell": call.key,
        "prompt_id": call.prompt_id,
        "model": call.card.name,
        "input_tokens": usage.get("prompt_tokens"),
        "output_tokens": usage.get("completion_tokens"),
        "latency_s": round(seconds, 6),
        "response": _answer_text(answer),
    }
    return {**cell, "grades": call.about} if call.is_grade else cell


def _answer_text(answer: Completion) -> str:
    choices = answer.get("choices") or [{}]
    message = choices[0].get("message") or {}
    return content_text(message.get("content"))
