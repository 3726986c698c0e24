"""Paths that APIs have beside their main one: stored responses, and counting tokens."""

from __future__ import annotations

from crossroads.gateway.call import Client
from crossroads.gateway.dialects import Surfaces
from crossroads.gateway.errors import ApiError
from crossroads.gateway.exchange import Exchange

_RESPONSES = "/responses/"
_COUNT = "/messages/count_tokens"


class ApiExtras:
    """Implements ``services.Extras`` over the surfaces."""

    def __init__(self, surfaces: Surfaces, *, body_limit: int) -> None:
        self._surfaces = surfaces
        self._body_limit = body_limit

    async def answer(self, client: Client, exchange: Exchange, path: str) -> bool:
        """Answer a request; return whether the path is one of these. Raises ApiError."""
        if path.startswith(_RESPONSES):
            rest = path.removeprefix(_RESPONSES)
            body = await self._surfaces.stored.answer(exchange.method, rest, exchange.query, client)
        elif path == _COUNT:
            if exchange.method != "POST":
                raise ApiError(
                    f"{exchange.path} takes POST, got {exchange.method}.",
                    status=405,
                    code="method_not_allowed",
                    headers=[(b"allow", b"POST")],
                )
            body = self._surfaces.messages.count_tokens(await exchange.read_body(self._body_limit))
        else:
            return False
        await exchange.send_json(body, headers=[])
        return True
