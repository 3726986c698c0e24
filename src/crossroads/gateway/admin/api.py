"""The admin server's JSON API: reads from ``AdminSources`` and hands on what may be changed."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
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
from crossroads.gateway.admin.shapes import budget_rows, frontier_view, key_rows
from crossroads.gateway.admin.sources import AdminSources
from crossroads.gateway.errors import ApiError
from crossroads.gateway.telemetry.catalogue import CONTENT_TYPE

logger = logging.getLogger(__name__)

T = TypeVar("T")
_BROKEN = "The admin server failed on this request; its log says why."
_MOST_DECISIONS = 500
_LONGEST_TRAFFIC = 86_400.0  # seconds
_LONGEST_WAIT_S = 10.0  # for a decision to be stored
_WAIT_STEP_S = 0.1
_FILTERS = {"model": "model", "policy": "policy", "key": "key_id"}


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
            Route("/api/keys/{name}", _json(self._revoke_key), methods=["DELETE"]),
            Route("/metrics", self._metrics, methods=["GET"]),
        ]

    async def _read(self, name: str, *arguments: Any) -> Any:
        """Ask one source. Raises ApiError 404 where there is none."""
        return await _wait(self._source(name)(*arguments))

    def _source(self, name: str) -> Callable[..., Any]:
        source: Callable[..., Any] | None = getattr(self._sources, name)
        if source is None:
            message = f"This gateway has no {name.replace('_', ' ')}; see its configuration."
            raise ApiError(message, status=404, code="not_configured")
        return source

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
        told = await self._read("governance")
        return {"keys": key_rows(told), "teams": [t["name"] for t in told.get("teams") or ()]}

    async def _budgets(self, _: Request) -> dict[str, Any]:
        told = await self._read("governance")
        return {"budgets": budget_rows(told, now=time.time()), "store": told.get("store")}

    async def _create_key(self, request: Request) -> Mapping[str, Any]:
        body = await _body(request)
        name = body.get("name")
        if not isinstance(name, str) or not name.strip() or len(name) > 100:
            raise ApiError("'name' must be a text of 1 to 100 characters.", param="name")
        fields = {field: value for field, value in body.items() if field != "name"}
        fields = {field: value for field, value in fields.items() if value not in (None, "")}
        source = self._source("create_key")
        await self._check_models(fields.get("models", []))
        secret = await _wait(source(name.strip(), **fields))
        return {"name": name.strip(), **fields, "secret": secret}

    async def _check_models(self, given: Any) -> None:
        """Raise ApiError 400 for names that a request could not ask for."""
        if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
            raise ApiError("'models' must be a list of names.", param="models")
        if not given or self._sources.models is None:
            return
        known = [model["name"] for model in await self._read("models")]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ApiError(
                f"'models' names what is not served: {', '.join(unknown)}; "
                f"there are {', '.join(known)}.",
                param="models",
            )

    async def _revoke_key(self, request: Request) -> dict[str, Any]:
        name = request.path_params["name"]
        await self._read("revoke_key", name)
        return {"name": name, "revoked": True}

    async def _decisions(self, request: Request) -> dict[str, Any]:
        limit = _number(request, "limit", default=50, low=1, high=_MOST_DECISIONS)
        query = request.query_params
        filters: dict[str, Any] = {
            field: query[name] for name, field in _FILTERS.items() if query.get(name)
        }
        status = query.get("status") or None
        if status not in (None, "ok", "failed"):
            raise ApiError("'status' must be ok or failed.", param="status")
        if status is not None:
            filters["is_error"] = status == "failed"
        rows = await self._read("decisions", int(limit), filters)
        return {"decisions": [to_fields(row) for row in rows]}

    async def _decision(self, request: Request) -> dict[str, Any]:
        identity = request.path_params["id"]
        wait = _number(request, "wait", default=0.0, low=0.0, high=_LONGEST_WAIT_S)
        until = time.monotonic() + wait
        row = await self._read("decision", identity)
        while row is None and time.monotonic() < until:  # stored a little after it was answered
            await asyncio.sleep(_WAIT_STEP_S)
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
        policies = await self._read("policies")
        told = (policies.get(policy) or {}).get("frontier")
        if told is None:
            raise ApiError(
                f"{policy!r} is no learned policy, so it has no frontier.",
                status=404,
                code="no_frontier",
            )
        preview = None
        if "price" in request.query_params:
            price = _number(request, "price", default=0.0, low=0.0, high=1e12)
            preview = {"price": price, **await self._read("preview", policy, price)}
        operating = told.get("operating_point") or {}
        return frontier_view(told, operating=operating, preview=preview)

    async def _check_config(self, request: Request) -> Mapping[str, Any]:
        text = (await request.body()).decode("utf-8", "replace")
        found: Mapping[str, Any] = await self._read("check_config", text or None)
        return found

    async def _play(self, request: Request) -> dict[str, Any]:
        body = await _body(request)
        if not isinstance(body.get("messages"), list) or not isinstance(body.get("model"), str):
            raise ApiError("A chat request is expected: 'model' and 'messages'.", param="messages")
        key = request.headers.get("x-gateway-key", "")
        reply = await self._read("playground", orjson.dumps({**body, "stream": False}), key)
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
