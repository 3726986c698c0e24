"""An expert behind an OpenAI-compatible HTTP endpoint.

What it may fail with is told in ``crossroads.prompts.experts.failures``. Answers are asked for
whole: whoever measures models has no use for their first words. The gateway, whose clients have,
asks through ``crossroads.gateway.upstreams``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import replace

import orjson

from crossroads.core.http.connection import HttpFailure
from crossroads.core.http.dial import parse_endpoint
from crossroads.core.http.pool import ConnectionPool, Seconds
from crossroads.core.http.pool import Request as HttpRequest
from crossroads.core.http.timeouts import Timeouts
from crossroads.prompts.experts.base import Chunk, Completion, Request, chunks_of, wants_usage
from crossroads.prompts.experts.environment import expand
from crossroads.prompts.experts.failures import ExpertFailures, json_object
from crossroads.prompts.experts.headers import (
    check_headers,
    request_head,
    secret_headers,
    secrets_in,
)
from crossroads.prompts.pool import ModelCard

_PATH = "chat/completions"
_STREAMING = frozenset({"stream", "stream_options"})


class HttpExpert:
    """Calls ``{endpoint}/chat/completions`` through connections of its own.

    Raises InputError for an endpoint that is no plain URL and for headers that cannot be set.

    Parameters
    ----------
    card : where the model is, its name there, key, headers, proxy, authorities and timeouts; what
        it takes from the environment is read at start, and shown nowhere
    timeouts : seconds per phase; those of the card go before
    max_answer_bytes : longest answer that is read
    """

    def __init__(
        self,
        card: ModelCard,
        *,
        timeouts: Timeouts | None = None,
        max_answer_bytes: int = 64 << 20,
    ) -> None:
        self.timeouts = replace(timeouts or Timeouts(), **card.timeouts)
        self._card = card
        self._max_bytes = max_answer_bytes
        self._where = f"model {card.name!r}"
        target = parse_endpoint(card.endpoint or "", where=self._where).target
        check_headers(card)
        # What errors show: no path, no key.
        self._place = f"{self._where} at {target.authority}"
        self._failures = ExpertFailures(self._place)
        self._head = b""
        self._pool: ConnectionPool | None = None

    @property
    def name(self) -> str:
        return self._card.name

    async def start(self) -> None:
        """Read keys and certificates. Raises InputError where one is not there."""
        card, where = self._card, self._where
        proxy = None if card.proxy is None else expand(card.proxy, where=f"proxy of {where}")
        base = parse_endpoint(card.endpoint or "", where=where, proxy=proxy, ca_file=card.ca_file)
        headers = secret_headers(card)
        pool = ConnectionPool(base.target)
        await pool.start()
        self._failures = ExpertFailures(self._place, secrets_in(headers))
        self._head = request_head(base, _PATH, headers)
        self._pool = pool

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    async def complete(self, request: Request) -> Completion:
        """Return the answer. Raises ExpertError. Cancelling closes its connection."""
        assert self._pool is not None, "start() first"
        try:
            connection, body = await self._pool.fetch(self._asking(request))
        except HttpFailure as failure:
            raise self._failures.of_transport(failure) from failure
        if connection.status != 200:
            raise self._failures.of_status(connection.status, connection.headers, body)
        answer = json_object(body)
        if answer is not None and answer.get("error"):
            raise self._failures.reported(answer["error"])
        if answer is None or not isinstance(answer.get("choices"), list):
            raise self._failures.no_answer("chat", connection.headers, body)
        return answer

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Yield the answer in chunks once it is there. Raises ExpertError."""
        answer = await self.complete(request)
        for chunk in chunks_of(answer, include_usage=wants_usage(request)):
            yield chunk

    def _asking(self, request: Request) -> HttpRequest:
        whole = {name: value for name, value in request.items() if name not in _STREAMING}
        try:
            body = orjson.dumps({**whole, "model": self._card.upstream_model or self.name})
        except orjson.JSONEncodeError as error:
            raise self._failures.unwritable(error) from error
        return HttpRequest(
            b"%scontent-length: %d\r\n\r\n" % (self._head, len(body)),
            body,
            self.timeouts,
            time.monotonic() + self.timeouts.total,
            Seconds(),
            self._max_bytes,
        )
