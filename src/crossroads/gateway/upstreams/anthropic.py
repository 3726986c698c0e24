"""Endpoints that speak Anthropic's Messages API; ``chat`` reaches them through translation."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from crossroads.gateway.call import Body, Dialect, Event
from crossroads.gateway.contracts import Order
from crossroads.gateway.dialects import (
    MessagesToChat,
    from_messages_answer,
    to_messages_request,
)
from crossroads.gateway.errors import ApiError
from crossroads.gateway.upstreams.http import Api, HttpUpstream
from crossroads.gateway.vocabulary import SpentError, usage_of
from crossroads.prompts.experts.base import ExpertError
from crossroads.prompts.pool import ModelCard

ANTHROPIC = Api(
    paths={"messages": "messages"},
    usual=frozenset({"messages", "chat"}),
    foreign=frozenset({b"openai-organization", b"openai-project", b"openai-beta"}),
    key_header=lambda key: ("x-api-key", key),
    defaults={b"anthropic-version": b"2023-06-01"},
)
"""Asked at ``{endpoint}/messages`` with ``x-api-key``."""


class AnthropicUpstream:
    """A model that knows messages only, asked in ``messages`` or in ``chat``.

    Parameters
    ----------
    card : the model; its ``max_output`` bounds answers to ``chat`` requests without a bound
    messages : the same model, asked in its own dialect
    """

    def __init__(self, card: ModelCard, messages: HttpUpstream) -> None:
        self._max_output = card.max_output
        self._speaks: frozenset[Dialect] = frozenset(card.speaks) or ANTHROPIC.usual
        self._messages = messages
        self.gate = messages.gate

    @property
    def name(self) -> str:
        return self._messages.name

    @property
    def speaks(self) -> frozenset[Dialect]:
        return self._speaks

    def check(self) -> None:
        """Find what would keep it from starting, connecting to nothing. Raises InputError."""
        self._messages.check()

    async def start(self) -> None:
        await self._messages.start()

    async def close(self) -> None:
        await self._messages.close()

    async def complete(self, order: Order) -> Body:
        """Return the whole answer in the order's dialect. Raises ExpertError."""
        if order.dialect != "chat":
            return await self._messages.complete(order)
        answer = await self._messages.complete(self._translated(order))
        try:
            return from_messages_answer(answer)
        except SpentError as error:
            error.usage = usage_of("messages", answer.get("usage"))
            raise

    async def stream(self, order: Order) -> AsyncGenerator[list[Event], None]:
        """Yield events in the order's dialect. Raises ExpertError."""
        if order.dialect != "chat":
            async with aclosing(self._messages.stream(order)) as batches:
                async for batch in batches:
                    yield batch
            return
        translator = MessagesToChat()
        async with aclosing(self._messages.stream(self._translated(order))) as batches:
            async for batch in batches:
                chunks = translator.feed(batch)
                if chunks:
                    yield chunks

    def _translated(self, order: Order) -> Order:
        body = dict(order.body)
        if self._max_output and not body.get("max_completion_tokens"):
            body.setdefault("max_tokens", self._max_output)
        try:
            messages = to_messages_request(body)
        except ApiError as error:
            raise ExpertError(
                f"model {self.name!r}: {error}",
                status=error.status,
                type=error.type,
                code=error.code,
                param=error.param,
            ) from error
        return replace(order, dialect="messages", body=messages)
