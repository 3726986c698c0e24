"""A model behind an HTTP API: orders out, answers and events back.

What differs between OpenAI's and Anthropic's API is an ``Api``; everything else is the same.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson

from crossroads.core.http.connection import Connection, HttpFailure
from crossroads.core.http.dial import Base
from crossroads.core.http.pool import ConnectionPool, Request
from crossroads.gateway.call import Body, Dialect, Event
from crossroads.gateway.contracts import Order
from crossroads.gateway.upstreams.failures import Failures
from crossroads.gateway.upstreams.gate import Gate
from crossroads.gateway.upstreams.reading import StreamReading
from crossroads.gateway.upstreams.settings import UpstreamSettings
from crossroads.gateway.vocabulary import BROKEN_OFF, NEVER_PASSED, usage_of
from crossroads.prompts.experts.base import chunks_of
from crossroads.prompts.experts.failures import json_object
from crossroads.prompts.experts.headers import (
    check_headers,
    is_plain,
    request_head,
    secret_headers,
    secrets_in,
)
from crossroads.prompts.pool import ModelCard

if TYPE_CHECKING:
    from crossroads.core.http.timeouts import Timeouts

_LIST_OF: dict[Dialect, str] = {
    "chat": "choices",
    "completions": "choices",
    "embeddings": "data",
    "responses": "output",
    "messages": "content",
}
"""The field that every answer of a dialect has, and that is a list."""

_NEVER = frozenset(name.encode() for name in NEVER_PASSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """How one family of APIs is asked.

    Attributes
    ----------
    paths : of each dialect it has, below the endpoint
    usual : dialects of an endpoint whose card does not say
    foreign : headers of a client's request that are another vendor's, and not sent
    key_header : from a key to the header that carries it
    defaults : headers in place of those a client does not send
    """

    paths: Mapping[Dialect, str]
    usual: frozenset[Dialect]
    foreign: frozenset[bytes]
    key_header: Callable[[str], tuple[str, str]]
    defaults: Mapping[bytes, bytes]


class HttpUpstream:
    """One model of one endpoint. Obeys ``crossroads.gateway.contracts.Upstream``.

    Parameters
    ----------
    card : the model
    base : where its API is
    pool : connections to that place, perhaps shared with other models
    api : which API it is
    timeouts : seconds per phase; those of the card go before
    settings : bounds of all upstreams
    """

    def __init__(
        self,
        card: ModelCard,
        *,
        base: Base,
        pool: ConnectionPool,
        api: Api,
        timeouts: Timeouts,
        settings: UpstreamSettings,
    ) -> None:
        self._name = card.name
        self._card = card
        self._base = base
        self._pool = pool
        self._api = api
        self._timeouts = replace(timeouts, **card.timeouts) if card.timeouts else timeouts
        self._speaks: frozenset[Dialect] = frozenset(card.speaks) or api.usual
        self._model = card.upstream_model or card.name
        self._max_bytes = settings.max_answer_bytes
        limit = card.max_parallel
        self._place = f"model {card.name!r} at {base.target.authority}"
        self._failures = Failures(self._place)
        self.gate = (
            Gate(limit, max_waiting=settings.max_waiting, failures=self._failures)
            if limit
            else None
        )
        self._heads: dict[Dialect, bytes] = {}
        check_headers(card)
        own = {name.lower().encode() for name in card.headers}  # go before a client's
        self._unsent = _NEVER | api.foreign | own
        self._default = {name: text for name, text in api.defaults.items() if name not in own}
        self._default_lines = _lines(self._default.items())

    @property
    def name(self) -> str:
        return self._name

    @property
    def speaks(self) -> frozenset[Dialect]:
        return self._speaks

    def check(self) -> None:
        """Find what would keep it from starting, connecting to nothing. Raises InputError."""
        self._secret_headers()
        self._pool.check()

    async def start(self) -> None:
        """Read keys from the environment. Raises InputError where one is not set."""
        secrets = self._secret_headers()
        self._heads = {
            dialect: request_head(self._base, path, secrets)
            for dialect, path in self._api.paths.items()
            if dialect in self._speaks
        }
        self._failures = Failures(self._place, secrets_in(secrets))
        await self._pool.start()

    async def close(self) -> None:
        if self._heads:
            self._heads = {}
            await self._pool.close()

    async def complete(self, order: Order) -> Body:
        """Return the whole answer. Raises ExpertError."""
        request = self._request(order, is_stream=False)
        began = await self._enter(order, request)
        try:
            connection, body = await self._pool.fetch(request)
        except HttpFailure as failure:
            raise self._failures.of_transport(failure) from failure
        finally:
            if self.gate is not None:
                self.gate.leave(time.perf_counter() - began)
        if connection.status != 200:
            raise self._failures.of_status(connection.status, connection.headers, body)
        return self._answer(order.dialect, connection, body)

    async def stream(self, order: Order) -> AsyncGenerator[list[Event], None]:
        """Yield the events of each read together. Raises ExpertError."""
        request = self._request(order, is_stream=True)
        began = await self._enter(order, request)
        try:
            connection = await self._pool.open(request)
            is_over = False
            try:
                if connection.status == 200 and _is_event_stream(connection):
                    reading = StreamReading(
                        connection, order, self._failures, max_event_bytes=self._max_bytes
                    )
                    while (batch := await reading.next()) is not None:
                        yield batch
                else:
                    yield self._whole_as_events(order, connection, await connection.whole())
                is_over = True
            finally:
                if is_over:
                    self._pool.linger(connection)
                else:
                    self._pool.settle(connection)
        except HttpFailure as failure:
            raise self._failures.of_transport(failure) from failure
        finally:
            if self.gate is not None:
                self.gate.leave(time.perf_counter() - began)

    # --- the request -----------------------------------------------------------------------------

    def _secret_headers(self) -> dict[str, str]:
        return secret_headers(self._card, key_header=self._api.key_header)

    def _request(self, order: Order, *, is_stream: bool) -> Request:
        head = self._heads.get(order.dialect)
        if head is None:
            raise self._failures.error(
                f"does not speak {order.dialect}",
                status=400,
                type="invalid_request_error",
                code="unsupported_dialect",
            )
        body = self._body(order, is_stream=is_stream)
        extra = self._passed_on(order.headers) if order.headers else self._default_lines
        deadline = time.monotonic() + self._timeouts.total
        if order.deadline is not None and order.deadline < deadline:
            deadline = order.deadline
        return Request(
            b"%s%scontent-length: %d\r\n\r\n" % (head, extra, len(body)),
            body,
            self._timeouts,
            deadline,
            order.phases,
            self._max_bytes,
            order.dialect != "responses" or order.body.get("store") is False,
        )

    def _body(self, order: Order, *, is_stream: bool) -> bytes:
        fields = {**order.body, "model": self._model}
        if is_stream:
            fields["stream"] = True
            if order.dialect in ("chat", "completions"):
                self._ask_for_usage(fields)
        elif "stream" in fields or "stream_options" in fields:
            fields.pop("stream", None)
            fields.pop("stream_options", None)
        try:
            return orjson.dumps(fields)
        except orjson.JSONEncodeError as error:
            raise self._failures.unwritable(error) from error

    def _ask_for_usage(self, fields: dict[str, Any]) -> None:
        given = fields.pop("stream_options", None)
        if self._card.stream_usage:
            options = given if isinstance(given, dict) else {}
            fields["stream_options"] = {**options, "include_usage": True}

    def _passed_on(self, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Return the lines of a client's headers, and of defaults that none of them replaces."""
        unsent = self._unsent
        given = {name: text for name, text in headers if name not in unsent and is_plain(text)}
        if self._default.keys().isdisjoint(given):
            return self._default_lines + _lines(given.items())
        return _lines({**self._default, **given}.items())

    async def _enter(self, order: Order, request: Request) -> float:
        """Wait for a place among the calls at a time; return when it was had."""
        if self.gate is not None:
            await self.gate.enter(order.phases, request.deadline)
        return time.perf_counter()

    # --- the answer ------------------------------------------------------------------------------

    def _answer(self, dialect: Dialect, connection: Connection, body: bytes) -> Body:
        answer = json_object(body)
        if answer is not None:
            if answer.get("error"):
                raise self._failures.reported(answer["error"])
            if _is_answer(dialect, answer):
                self._check_end(dialect, answer)
                return answer
        usage = None if answer is None else usage_of(dialect, answer.get("usage"))
        raise self._failures.no_answer(dialect, connection.headers, body, usage=usage)

    def _check_end(self, dialect: Dialect, answer: Body) -> None:
        """Refuse an answer whose server says that it gave it up."""
        if _LIST_OF[dialect] != "choices":
            return
        for choice in answer["choices"]:
            finish = choice.get("finish_reason")
            if isinstance(finish, str) and finish in BROKEN_OFF:
                raise self._failures.invalid(
                    f"the upstream gave the answer up ({finish!r})",
                    usage=usage_of(dialect, answer.get("usage")),
                )

    def _whole_as_events(self, order: Order, connection: Connection, body: bytes) -> list[Event]:
        """Some servers ignore ``stream`` and answer whole; anything but an answer raises here."""
        if connection.status != 200:
            raise self._failures.of_status(connection.status, connection.headers, body)
        answer = self._answer(order.dialect, connection, body)
        if order.dialect == "chat":
            return list(chunks_of(answer, include_usage="usage" in answer))
        if order.dialect == "completions":
            return [answer]
        raise self._failures.invalid(
            "a whole answer where a stream was asked for",
            usage=usage_of(order.dialect, answer.get("usage")),
        )


def _is_answer(dialect: Dialect, answer: Body) -> bool:
    parts = answer.get(_LIST_OF[dialect])
    if type(parts) is not list:
        return False
    for part in parts:
        if type(part) is not dict:
            return False
        if dialect == "chat" and type(part.get("message")) is not dict:
            return False
    return True


def _is_event_stream(connection: Connection) -> bool:
    return connection.headers.get(b"content-type", b"").lower().startswith(b"text/event-stream")


def _lines(headers: Any) -> bytes:
    return b"".join([b"%s: %s\r\n" % pair for pair in headers])
