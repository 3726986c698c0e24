"""Answers a request with an ``Idempotency-Key`` once, however often it is sent."""

from __future__ import annotations

from crossroads.gateway.call import Call
from crossroads.gateway.engine.idempotency import Idempotency, Response, digest_of
from crossroads.gateway.exchange import Exchange
from crossroads.gateway.pipeline import Run

_REPLAYED = (b"x-crossroads-replayed", b"true")
_OWN = frozenset({b"content-length"})  # of a response; the transport writes them anew


class Once:
    """Keeps the bytes of whole answers for whoever repeats their request.

    Parameters
    ----------
    kept : answers by client and key
    """

    def __init__(self, kept: Idempotency) -> None:
        self._kept = kept

    async def answer(self, exchange: Exchange, call: Call, body: bytes, run: Run) -> None:
        """Run the call, or repeat the answer it had. Raises ApiError 400, 409, 422."""
        key = exchange.headers[b"idempotency-key"].decode("latin-1")
        digest = digest_of(call.dialect, body)
        async with self._kept.enter(call.client.key_id, key, digest) as slot:
            if slot.earlier is not None:
                await _repeat(exchange, slot.earlier)
                return
            parts: list[bytes] = []
            exchange.keep = parts.append
            await run.answer()
            if run.is_whole:
                slot.keep(exchange.status, exchange.sent_headers, b"".join(parts))


async def _repeat(exchange: Exchange, earlier: Response) -> None:
    headers = [pair for pair in earlier.headers if pair[0] not in _OWN]
    await exchange.send_whole(earlier.status, [*headers, _REPLAYED], earlier.body)
