"""The admin server's JSON API: reads from ``AdminSources`` and hands on what may be changed."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from crossroads import __version__
from crossroads.core.errors import CrossroadsError
from crossroads.gateway.admin.explain import explain, to_fields
from crossroads.gateway.admin.guard import BodyTooLargeError
from crossroads.gateway.admin.sources import AdminSources
from crossroads.gateway.errors import ApiError
from crossroads.gateway.telemetry.exposition import CONTENT_TYPE

logger = logging.getLogger(__name__)

T = TypeVar("T")
_BROKEN = "The admin server failed on this request; its log says why."
_MOST_DECISIONS = 500
_LONGEST_TRAFFIC = 86_400.0  # seconds
_FILTERS = ("model", "policy", "key", "status")


class Api:
    """Handlers of ``/api/...`` and ``/metrics``."""

    def __init__(self, sources: AdminSources) -> None:
        self._sources = sources

    def routes(self) -> list[Route]:
        reads: dict[str, Callable[[Request], Awaitable[Any]]] = {
            "status": self._status,
            "traffic": self._traffic,
            "models": lambda _: self._read("models"),
            "upstreams": lambda _: self._read("upstreams"),
            "keys": self._keys,
            "budgets": self._budgets,
            "decisions": self._decisions,
            "decisions/{id}": self._decision,
            "policies": lambda _: self._read("policies"),
            "frontier": self._frontier,
            "regret": lambda _: self._read("regret"),
            "drift": lambda _: self._read("drift"),
        }
        changes: dict[str, Callable[[Request], Awaitable[Any]]] = {
            "keys": self._create_key,
            "reload": lambda _: self._read("reload"),
            "check-config": self._check_config,
            "playground": self._play,
        }
        return [
            *(Route(f"/api/{name}", _json(work), methods=["GET"]) for name, work in reads.items()),
            *(
                Route(f"/api/{name}", _json(work), methods=["POST"])
                for name, work in changes.items()
            ),
            Route("/api/keys/{id}", _json(self._revoke_key), methods=["DELETE"]),
            Route("/metrics", self._metrics, methods=["GET"]),
        ]

    async def _read(self, name: str, *arguments: Any) -> Any:
        """Ask one source. Raises ApiError 404 where there is none."""
        source = getattr(self._sources, name)
        if source is None:
            message = f"This gateway has no {name.replace('_', ' ')}; see its configuration."
            raise ApiError(message, status=404, code="not_configured")
        return await _wait(source(*arguments))

    async def _status(self, _: Request) -> dict[str, Any]:
        health = await self._read("health") if self._sources.health else {"status": "ok"}
        return {
            "version": __version__,
            "config": self._sources.config_path,
            "gateway_url": self._sources.gateway_url,
            "has": [
                name
                for name in AdminSources.__slots__
                if callable(getattr(self._sources, name, None))
            ],
            **health,
        }

    async def _traffic(self, request: Request) -> dict[str, Any]:
        seconds = _number(request, "seconds", default=900.0, low=1.0, high=_LONGEST_TRAFFIC)
        found = dict(await self._read("traffic", seconds))
        if self._sources.summary is not None:
            since = _number(request, "since", default=0.0, low=0.0, high=math.inf)
            found["summary"] = await self._read("summary", since)
        return found

    async def _keys(self, _: Request) -> dict[str, Any]:
        facts = await self._read("governance")
        return {"keys": list(facts.get("keys", ())), "teams": facts.get("teams", [])}

    async def _budgets(self, _: Request) -> dict[str, Any]:
        facts = await self._read("governance")
        return {"budgets": list(facts.get("budgets", ())), "store": facts.get("store")}

    async def _create_key(self, request: Request) -> Mapping[str, Any]:
        body = await _body(request)
        name = body.get("name")
        if not isinstance(name, str) or not name.strip() or len(name) > 100:
            raise ApiError("'name' must be a text of 1 to 100 characters.", param="name")
        found: Mapping[str, Any] = await self._read("create_key", body)
        return found

    async def _revoke_key(self, request: Request) -> dict[str, Any]:
        key = request.path_params["id"]
        if not await self._read("revoke_key", key):
            raise ApiError(f"There is no key {key!r}.", status=404, code="key_not_found")
        return {"id": key, "revoked": True}

    async def _decisions(self, request: Request) -> dict[str, Any]:
        limit = _number(request, "limit", default=50, low=1, high=_MOST_DECISIONS)
        query = request.query_params
        filters = {name: query[name] for name in _FILTERS if query.get(name)}
        if filters.get("status") not in (None, "ok", "failed"):
            raise ApiError("'status' must be ok or failed.", param="status")
        rows = await self._read("decisions", int(limit), filters)
        return {"decisions": [to_fields(row) for row in rows]}

    async def _decision(self, request: Request) -> dict[str, Any]:
        identity = request.path_params["id"]
        row = await self._read("decision", identity)
        if row is None:
            raise ApiError(
                f"There is no decision {identity!r} any more, or not yet.",
                status=404,
                code="decision_not_found",
            )
        return explain(to_fields(row))

    async def _frontier(self, request: Request) -> Mapping[str, Any]:
        policy = request.query_params.get("policy", "")
        if not policy:
            raise ApiError("'policy' is missing: name one of /api/policies.", param="policy")
        price = None
        if "price" in request.query_params:
            price = _number(request, "price", default=0.0, low=0.0, high=1e12)
        found: Mapping[str, Any] = await self._read("frontier", policy, price)
        return found

    async def _check_config(self, request: Request) -> Mapping[str, Any]:
        text = (await request.body()).decode("utf-8", "replace")
        found: Mapping[str, Any] = await self._read("check_config", text or None)
        return found

    async def _play(self, request: Request) -> dict[str, Any]:
        body = await _body(request)
        if not isinstance(body.get("messages"), list) or not isinstance(body.get("model"), str):
            raise ApiError("A chat request is expected: 'model' and 'messages'.", param="messages")
        reply = await self._read("playground", orjson.dumps({**body, "stream": False}))
        try:
            answer = orjson.loads(reply.body)
        except ValueError:
            answer = reply.body.decode("utf-8", "replace")
        return {"status": reply.status, "headers": dict(reply.headers), "answer": answer}

    async def _metrics(self, _: Request) -> Response:
        if self._sources.metrics is None:
            return Response("no metrics\n", 404)
        return Response(await _wait(self._sources.metrics()), media_type=CONTENT_TYPE)


def _json(work: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler that answers with what ``work`` returns, or with the error it raises."""

    async def answer(request: Request) -> Response:
        try:
            status, content = 200, await work(request)
        except ApiError as error:
            status, content = error.status, error_body(str(error), error.status, error.code)
            if error.param:
                content["error"]["param"] = error.param
        except CrossroadsError as error:
            status, content = 400, error_body(str(error), 400, "refused")
        except (BodyTooLargeError, ClientDisconnect):
            raise
        except Exception:
            logger.exception("admin request to %s failed", request.url.path)
            status, content = 500, error_body(_BROKEN, 500, "internal_error")
        option = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
        return Response(
            orjson.dumps(content, default=_fallback, option=option),
            status,
            media_type="application/json",
        )

    return answer


def error_body(message: str, status: int, code: str | None) -> dict[str, dict[str, Any]]:
    """Return an error in the API's shape."""
    return {"error": {"message": message, "code": code, "status": status}}


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = orjson.loads(await request.body())
    except ValueError as error:
        raise ApiError(f"The body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError("The body must be a JSON object.", code="invalid_json")
    return body


def _number(request: Request, name: str, *, default: float, low: float, high: float) -> float:
    given = request.query_params.get(name)
    if given is None:
        return default
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise ApiError(f"{name!r} must be a number from {low:g} to {high:g}.", param=name)
    return value


async def _wait(value: Awaitable[T] | T) -> T:
    return await value if inspect.isawaitable(value) else value


def _fallback(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not plain data")
