"""The paths beside those that answer prompts.

=============================  ===================================================================
GET /v1/models[/{id}]          models and policies, in OpenAI's shape or (asked so) Anthropic's
GET /v1/decisions/{id}         the ledger's record of one's own call: cost, tokens, phases, reason
POST /v1/feedback              a score or a preference for a decision
GET /health                    this process lives; needs no key
GET /health/ready              it can serve, and how well its parts are; needs no key
GET /version                   of crossroads; needs no key
GET /metrics                   Prometheus
GET /openapi.json              this API described
=============================  ===================================================================

The surfaces may bring more (``/responses/{id}``, ``/messages/count_tokens``): ``Services.extras``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import orjson

from crossroads import __version__
from crossroads.gateway.errors import ApiError
from crossroads.gateway.exchange import Exchange
from crossroads.gateway.services import Services

Handler = Callable[[Services, Exchange, str], Awaitable[None]]
_MOST_FEEDBACK = 1 << 16  # bytes
_OPERATOR = "metrics"  # tag of keys that may read what others spend
_OWN_KEYS = ("", "default")  # nobody's, and the server's single one


class Endpoints:
    """Answers what no surface does."""

    def __init__(self) -> None:
        self._created = int(time.time())
        self._open: dict[str, tuple[str, Handler]] = {
            "/health": ("GET", _health),
            "/health/ready": ("GET", _ready),
            "/version": ("GET", _version),
        }
        self._closed: dict[str, tuple[str, Handler]] = {
            "/models": ("GET", self._list_models),
            "/metrics": ("GET", _metrics),
            "/openapi.json": ("GET", _openapi),
            "/feedback": ("POST", _feedback),
        }
        self._below: dict[str, tuple[str, Handler]] = {
            "/models/": ("GET", self._show_model),
            "/decisions/": ("GET", _show_decision),
        }

    async def answer(self, services: Services, exchange: Exchange, path: str) -> None:
        """Answer a request. Raises ApiError 401, 404, 405, and what the path's own work raises."""
        method, handler = self._open.get(path, (None, None))
        if handler is None:
            client = services.governor.identify(exchange.headers)
            method, handler = self._find(services, path)
            if handler is None:
                extras = services.extras
                if extras is None or not await extras.answer(client, exchange, path):
                    raise _unknown(exchange, services)
                return
        if exchange.method != method and (exchange.method, method) != ("HEAD", "GET"):
            raise ApiError(
                f"{exchange.path} takes {method}, got {exchange.method}.",
                status=405,
                code="method_not_allowed",
                headers=[(b"allow", str(method).encode())],
            )
        await handler(services, exchange, path)

    def _find(self, services: Services, path: str) -> tuple[str | None, Handler | None]:
        if path in services.surfaces:
            return "POST", _unreachable
        if path in self._closed:
            return self._closed[path]
        for prefix, found in self._below.items():
            if path.startswith(prefix):
                return found
        return None, None

    async def _list_models(self, services: Services, exchange: Exchange, _: str) -> None:
        names = _visible(services, exchange)
        if b"anthropic-version" in exchange.headers:
            data = [self._anthropic_card(name) for name in names]
            ends = {"first_id": names[0], "last_id": names[-1]} if names else {}
            shown: dict[str, Any] = {"data": data, "has_more": False, **ends}
        else:
            shown = {"object": "list", "data": [self._openai_card(name) for name in names]}
        await exchange.send_json(orjson.dumps(shown), headers=[])

    async def _show_model(self, services: Services, exchange: Exchange, path: str) -> None:
        name = path.removeprefix("/models/")
        if name not in _visible(services, exchange):
            raise ApiError(
                f"The model {name!r} does not exist; GET /v1/models lists those that do.",
                status=404,
                code="model_not_found",
                param="model",
            )
        is_anthropic = b"anthropic-version" in exchange.headers
        card = self._anthropic_card(name) if is_anthropic else self._openai_card(name)
        await exchange.send_json(orjson.dumps(card), headers=[])

    def _openai_card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "crossroads"}

    def _anthropic_card(self, name: str) -> dict[str, Any]:
        created = datetime.fromtimestamp(self._created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"type": "model", "id": name, "display_name": name, "created_at": created}


def _visible(services: Services, exchange: Exchange) -> list[str]:
    """Return what the client's key may ask for."""
    allowed = services.governor.identify(exchange.headers).models
    return [name for name in services.policies.names if allowed is None or name in allowed]


async def _health(_: Services, exchange: Exchange, __: str) -> None:
    await exchange.send_json(b'{"status":"ok"}', headers=[])


async def _ready(services: Services, exchange: Exchange, _: str) -> None:
    """Say how the parts are; the reasons stay with the admin server, which asks for a token."""
    found = services.health()
    parts = {name: part["status"] for name, part in found["parts"].items()}
    status = 503 if found["status"] == "failing" else 200
    body = orjson.dumps({"status": found["status"], "parts": parts})
    await exchange.send_json(body, status=status, headers=[])


async def _version(_: Services, exchange: Exchange, __: str) -> None:
    body = orjson.dumps({"name": "crossroads", "version": __version__})
    await exchange.send_json(body, headers=[])


async def _metrics(services: Services, exchange: Exchange, _: str) -> None:
    if services.metrics is None:
        raise _unknown(exchange, services)
    text = await services.metrics()
    client = services.governor.identify(exchange.headers)
    if client.key_id not in _OWN_KEYS and _OPERATOR not in client.tags:
        # What one tenant spends is no other tenant's business.
        text = b"".join(
            line for line in text.splitlines(keepends=True) if b"crossroads_key_" not in line
        )
    await exchange.send_json(text, headers=[], content_type=b"text/plain; version=0.0.4")


async def _openapi(services: Services, exchange: Exchange, _: str) -> None:
    from crossroads.gateway.openapi import document

    body = await asyncio.to_thread(lambda: orjson.dumps(document(services.policies.names)))
    await exchange.send_json(body, headers=[])


async def _feedback(services: Services, exchange: Exchange, _: str) -> None:
    client = services.governor.identify(exchange.headers)
    body = await exchange.read_body(_MOST_FEEDBACK)
    if services.remember is None:
        raise _no_ledger("feedback")
    shown = await services.remember(client, body)
    await exchange.send_json(orjson.dumps(shown), headers=[])


async def _show_decision(services: Services, exchange: Exchange, path: str) -> None:
    client = services.governor.identify(exchange.headers)
    if services.recall is None:
        raise _no_ledger("decisions")
    decision_id = path.removeprefix("/decisions/")
    found = await services.recall(client, decision_id)
    if found is None:
        raise ApiError(
            f"No decision {decision_id!r} of this key is in the ledger; rows appear a moment after "
            "the answer.",
            status=404,
            code="decision_not_found",
        )
    await exchange.send_json(orjson.dumps(found, default=str), headers=[])


async def _unreachable(_: Services, __: Exchange, ___: str) -> None:
    raise AssertionError("a surface answers POST before any endpoint is asked")


def _no_ledger(what: str) -> ApiError:
    return ApiError(
        f"This server keeps no ledger and so has no {what}; set 'ledger' in its configuration.",
        status=404,
        code="no_ledger",
    )


def _unknown(exchange: Exchange, services: Services) -> ApiError:
    known = ", ".join(f"/v1{path}" for path in services.surfaces)
    is_twice = exchange.path.startswith("/v1/v1/")  # Anthropic's client adds /v1, OpenAI's does not
    hint = " This client adds /v1 itself: leave it out of its base URL." if is_twice else ""
    return ApiError(
        f"Unknown path {exchange.path!r}; this server has {known}, /v1/models, /health and "
        f"/openapi.json.{hint}",
        status=404,
        code="unknown_url",
    )
