"""Paths that APIs have beside their main one: stored responses, and counting tokens."""

from __future__ import annotations

from collections.abc import Callable

from crossroads.gateway.call import Client
from crossroads.gateway.dialects import Surfaces
from crossroads.gateway.errors import ApiError
from crossroads.gateway.exchange import Exchange

_RESPONSES = "/responses/"
_COUNT = "/messages/count_tokens"


class ApiExtras:
    """Implements ``services.Extras`` over the surfaces.

    Parameters
    ----------
    surfaces : that hold what is asked for
    body_limit : bytes of a request
    is_known : whether a request may name a model or policy; by default any
    """

    def __init__(
        self,
        surfaces: Surfaces,
        *,
        body_limit: int,
        is_known: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._surfaces = surfaces
        self._body_limit = body_limit
        self._is_known = is_known

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
            given = await exchange.read_body(self._body_limit)
            body = self._surfaces.messages.count_tokens(given, is_known=self._is_known)
        else:
            return False
        await exchange.send_json(body, headers=[])
        return True
