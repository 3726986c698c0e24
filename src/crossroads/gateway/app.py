"""The gateway as a plain ASGI application: paths, and answers for everything that fails."""

from __future__ import annotations

import logging
import time

from crossroads.core.errors import CrossroadsError
from crossroads.gateway.contracts import Surface
from crossroads.gateway.endpoints import Endpoints
from crossroads.gateway.errors import ApiError, internal_error
from crossroads.gateway.exchange import (
    ClientGoneError,
    Exchange,
    Lookout,
    Receive,
    Scope,
    Send,
)
from crossroads.gateway.once import Once
from crossroads.gateway.pipeline import Run
from crossroads.gateway.services import Services

logger = logging.getLogger(__name__)


class Gateway:
    """Serves models behind the APIs of OpenAI and Anthropic.

    Every path works with and without ``/v1``. Those that answer prompts are the services'
    ``surfaces``; the others stand in ``crossroads.gateway.endpoints``.

    Parameters
    ----------
    services : what a request needs; replaced as a whole by ``swap``
    once : answers of repeated ``Idempotency-Key``; None to ignore the header

    Attributes
    ----------
    num_refused : requests by status that were refused before they became a call
    """

    def __init__(self, services: Services, *, once: Once | None = None) -> None:
        self._services = services
        self._once = once
        self._endpoints = Endpoints()
        self._lookout = Lookout()
        self.num_refused: dict[int, int] = {}

    @property
    def services(self) -> Services:
        """The snapshot that new requests get."""
        return self._services

    def swap(self, services: Services) -> Services:
        """Serve new requests with another snapshot; return the one before, to be retired."""
        before, self._services = self._services, services
        return before

    async def start(self) -> None:
        """Start every upstream. Raises CrossroadsError where one cannot work here."""
        await self._services.start()

    async def close(self) -> None:
        await self._services.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request, or the lifespan events of an ASGI server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(Exchange(scope, receive, send, self._lookout))
        else:
            raise ValueError(f"expected HTTP, got {scope['type']!r}")

    async def _answer(self, exchange: Exchange) -> None:
        started = time.perf_counter()
        services = self._services
        services.enter()
        path = short_path(exchange.path)
        if path.startswith("/messages") or b"anthropic-version" in exchange.headers:
            exchange.id_header = b"request-id"  # Anthropic's name for it
        surface = services.surfaces.get(path)
        try:
            if surface is not None and exchange.method == "POST":
                await self._ask(services, exchange, surface, started)
            else:
                await self._endpoints.answer(services, exchange, path)
        except ClientGoneError:
            pass
        except ApiError as error:
            self.num_refused[error.status] = self.num_refused.get(error.status, 0) + 1
            await _refuse(services, exchange, path, error)
        except Exception:
            # Whatever goes wrong with one request, the next ones are served.
            logger.exception("request %s failed", exchange.request_id.decode())
            await _refuse(services, exchange, path, internal_error())
        finally:
            services.leave()

    async def _ask(
        self, services: Services, exchange: Exchange, surface: Surface, started: float
    ) -> None:
        client = services.governor.identify(exchange.headers)
        body = await exchange.read_body(services.body_limit)
        call = surface.parse(body, client=client, headers=exchange.headers)
        call.phases.started = started
        call.request_id = exchange.request_id.decode()
        run = Run(services, exchange, surface, call)
        if self._once is None or b"idempotency-key" not in exchange.headers:
            await run.answer()
        else:
            deciding = services.deciding_headers
            await self._once.answer(exchange, call, body, run, deciding=deciding)

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


def short_path(path: str) -> str:
    """Return a path without ``/v1`` before it and ``/`` behind it."""
    if path.startswith("/v1/"):
        path = path[3:]
    return path if path == "/" or not path.endswith("/") else path.rstrip("/") or "/"


async def _refuse(services: Services, exchange: Exchange, path: str, error: ApiError) -> None:
    """Send an error in the shape of the API that was called."""
    if exchange.is_over:
        return
    if exchange.is_answered:
        # A stream has begun and nobody could end it with an event of its own: no further byte, so
        # that what came before cannot pass for a whole answer.
        await exchange.end(b"")
        return
    surface = services.surfaces.get(path) or services.surfaces[_nearest(exchange, path)]
    body = surface.error(error, exchange.request_id.decode())
    await exchange.send_json(body, status=surface.status(error), headers=error.headers)


def _nearest(exchange: Exchange, path: str) -> str:
    """Return the path of the surface whose error shape the client expects."""
    is_anthropic = b"anthropic-version" in exchange.headers or path.startswith("/messages")
    return "/messages" if is_anthropic else "/chat/completions"
