"""The gateway as a plain ASGI application: paths, keys, and answers for everything that fails."""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping

import orjson

from crossroads.core.errors import CrossroadsError
from crossroads.gateway.chat import Chat
from crossroads.gateway.errors import ApiError
from crossroads.gateway.routing import AUTO, Router, Routing
from crossroads.gateway.wire import ClientGoneError, Exchange, Receive, Scope, Send
from crossroads.prompts.experts.base import Expert
from crossroads.prompts.preferences.router import PreferenceRouter

logger = logging.getLogger(__name__)

DEFAULT_BODY_LIMIT = 8 << 20  # bytes

_Handler = Callable[[Exchange, float], Awaitable[None]]


class Gateway:
    """Serves experts behind OpenAI's endpoints. Every path works with and without ``/v1``.

    ==========================  ==================================================================
    POST /v1/chat/completions   JSON, or server-sent events where the request says ``stream``
    GET /v1/models[/{id}]       the models, and ``auto`` where a router is loaded
    GET /health                 this process lives; needs no key
    ==========================  ==================================================================

    Parameters
    ----------
    experts : by model name
    router : chooses among them for the model ``auto``; None to serve named models only
    preferences : decides for plain ``auto`` in the router's place; None without policies
    rule : decision rule in place of the router's own
    api_key : expected as a bearer token; None to let everybody in
    body_limit : largest request body, in bytes
    """

    def __init__(
        self,
        experts: Mapping[str, Expert],
        router: Router | None = None,
        *,
        preferences: PreferenceRouter | None = None,
        rule: str | None = None,
        api_key: str | None = None,
        body_limit: int = DEFAULT_BODY_LIMIT,
    ) -> None:
        self._experts = experts
        self._routing = Routing(list(experts), router, preferences=preferences, rule=rule)
        self._chat = Chat(experts, self._routing, body_limit=body_limit)
        self._authorization = None if api_key is None else f"Bearer {api_key}".encode()
        self._created = int(time.time())
        self._paths: dict[str, tuple[str, _Handler]] = {
            "/health": ("GET", self._health),
            "/chat/completions": ("POST", self._chat.answer),
            "/models": ("GET", self._list_models),
        }

    async def start(self) -> None:
        """Start every expert. Raises CrossroadsError where one cannot work here."""
        for expert in self._experts.values():
            await expert.start()

    async def close(self) -> None:
        for expert in self._experts.values():
            await expert.close()
        self._routing.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request, or the lifespan events of an ASGI server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(Exchange(scope, receive, send))
        else:
            raise ValueError(f"expected HTTP, got {scope['type']!r}")

    async def _answer(self, exchange: Exchange) -> None:
        started = time.perf_counter()
        try:
            handler = self._find(exchange)
            await handler(exchange, started)
        except ClientGoneError:
            pass
        except ApiError as error:
            await exchange.send_error(error)
        except Exception:
            # Whatever goes wrong with one request, the next ones are served.
            logger.exception("request %s failed", exchange.request_id.decode())
            failure = "The server failed on this request; its log says why."
            await exchange.send_error(ApiError(failure, status=500, code="internal_error"))

    def _find(self, exchange: Exchange) -> _Handler:
        path = re.sub(r"^/v1(?=/)", "", exchange.path)
        path = path.rstrip("/") or "/"
        if path != "/health":
            self._check_key(exchange)
        method, handler = self._paths.get(path, (None, None))
        if handler is None and path.startswith("/models/"):
            method, handler = "GET", self._show_model
        if handler is None:
            raise ApiError(
                f"Unknown path {exchange.path!r}; this server has /v1/chat/completions, "
                "/v1/models and /health.",
                status=404,
                code="unknown_url",
            )
        if exchange.method != method and (exchange.method, method) != ("HEAD", "GET"):
            raise ApiError(
                f"{exchange.path} takes {method}, got {exchange.method}.",
                status=405,
                code="method_not_allowed",
                headers=[(b"allow", str(method).encode())],
            )
        return handler

    def _check_key(self, exchange: Exchange) -> None:
        if self._authorization is None:
            return
        given = exchange.headers.get(b"authorization", b"")
        if not hmac.compare_digest(given, self._authorization):
            what = "Wrong API key" if given else "No API key"
            raise ApiError(
                f"{what}; send the header 'Authorization: Bearer KEY'.",
                status=401,
                code="invalid_api_key",
                headers=[(b"www-authenticate", b"Bearer")],
            )

    async def _health(self, exchange: Exchange, _: float) -> None:
        await exchange.send_json(b'{"status":"ok"}', headers=[])

    async def _list_models(self, exchange: Exchange, _: float) -> None:
        cards = [self._model_card(name) for name in self._model_names()]
        await exchange.send_json(orjson.dumps({"object": "list", "data": cards}), headers=[])

    async def _show_model(self, exchange: Exchange, _: float) -> None:
        name = exchange.path.partition("/models/")[2]
        if name not in self._model_names():
            raise ApiError(
                f"The model {name!r} does not exist; GET /v1/models lists those that do.",
                status=404,
                code="model_not_found",
                param="model",
            )
        await exchange.send_json(orjson.dumps(self._model_card(name)), headers=[])

    def _model_names(self) -> list[str]:
        return [*([AUTO] if self._routing.has_router else []), *self._experts]

    def _model_card(self, name: str) -> dict[str, str | int]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "crossroads"}

    async def _live(self, receive: Receive, send: Send) -> None:
        """Follow the ASGI lifespan protocol, for servers other than our own."""
        await receive()
        try:
            await self.start()
        except CrossroadsError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})
