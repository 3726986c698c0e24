"""Answers a request with an ``Idempotency-Key`` once, however often it is sent."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack

from crossroads.gateway.call import Call
from crossroads.gateway.engine.idempotency import Idempotency, Response, Slot, digest_of
from crossroads.gateway.errors import ApiError
from crossroads.gateway.exchange import Exchange
from crossroads.gateway.pipeline import Run

_OURS = b"x-crossroads-"
_REPLAYED = (b"x-crossroads-replayed", b"true")
_OWN = frozenset({b"content-length"})  # of a response; the transport writes them anew
_MOST_WAITING = 8  # requests of one key; they pass no limit while they wait


class Once:
    """Keeps the bytes of whole answers for whoever repeats their request.

    Parameters
    ----------
    kept : answers by client and key
    """

    def __init__(self, kept: Idempotency) -> None:
        self._kept = kept
        self._waiting: Counter[tuple[str, str]] = Counter()

    async def answer(
        self,
        exchange: Exchange,
        call: Call,
        body: bytes,
        run: Run,
        *,
        deciding: frozenset[bytes] = frozenset(),
    ) -> None:
        """Run the call, or repeat the answer it had.

        ``deciding`` are headers that policies go by, beside our own (``x-crossroads-...``): with
        another value a request is another one.

        Raises ApiError 400, 409, 422, and ClientGoneError while it waits for the first request.
        """
        async with AsyncExitStack() as stack:
            headers = [
                pair
                for pair in exchange.headers.items()
                if pair[0] in deciding or pair[0].startswith(_OURS)
            ]
            digest = digest_of(call.dialect, body, headers)
            slot = await self._enter(stack, exchange, call, digest)
            if slot.earlier is not None:
                await _repeat(exchange, slot.earlier)
                return
            parts: list[bytes] = []
            exchange.keep = parts.append
            await run.answer()
            if run.is_whole:
                slot.keep(exchange.status, exchange.sent_headers, b"".join(parts))

    async def _enter(
        self, stack: AsyncExitStack, exchange: Exchange, call: Call, digest: bytes
    ) -> Slot:
        """Wait for the first request with this key, if there is one."""
        key = exchange.headers[b"idempotency-key"].decode("latin-1")
        name = (call.client.key_id, key)
        if self._waiting[name] >= _MOST_WAITING:
            raise ApiError(
                f"{_MOST_WAITING} requests with this Idempotency-Key wait already.",
                status=409,
                code="idempotency_key_in_use",
                headers=[(b"retry-after", b"1")],
            )
        self._waiting[name] += 1
        try:
            with exchange.watch():
                return await stack.enter_async_context(self._kept.enter(*name, digest))
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name]


async def _repeat(exchange: Exchange, earlier: Response) -> None:
    headers = [pair for pair in earlier.headers if pair[0] not in _OWN]
    await exchange.send_whole(earlier.status, [*headers, _REPLAYED], earlier.body)
