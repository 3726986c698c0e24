"""POST /v1/chat/completions: check the request, route it, relay the expert's answer."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import orjson

from crossroads.gateway.errors import ApiError, Headers, from_expert
from crossroads.gateway.routing import PREFERENCES, Route, Routing
from crossroads.gateway.wire import Exchange
from crossroads.prompts.experts.base import (
    Chunk,
    Completion,
    Expert,
    ExpertError,
    new_completion_id,
    wants_usage,
)
from crossroads.prompts.experts.http import client_headers


class Chat:
    """The endpoint.

    Parameters
    ----------
    experts : by model name, started
    routing : which of them answers
    body_limit : bytes
    """

    def __init__(self, experts: Mapping[str, Expert], routing: Routing, *, body_limit: int) -> None:
        self._experts = experts
        self._routing = routing
        self._body_limit = body_limit

    async def answer(self, exchange: Exchange, started: float) -> None:
        """Answer one request; ``started`` is when it came in (``time.perf_counter``)."""
        request = read_request(await exchange.read_body(self._body_limit))
        await exchange.while_connected(self._answer(exchange, request, started))

    async def _answer(self, exchange: Exchange, request: dict[str, Any], started: float) -> None:
        try:
            preferences = request.pop(PREFERENCES, None) if self._routing.has_preferences else None
            route = await self._routing.route(request["model"], request["messages"], preferences)
            exchange.more_headers = route.headers()  # of a failure after this point, too
            client_headers.set(exchange.text_headers())
            relay = self._stream if request.get("stream") else self._complete
            await relay(exchange, request, route, started)
        except ExpertError as error:
            await exchange.send_error(from_expert(error))
        except ApiError as error:
            await exchange.send_error(error)

    async def _complete(
        self, exchange: Exchange, request: dict[str, Any], route: Route, started: float
    ) -> None:
        asked = time.perf_counter()
        answer = await self._experts[route.model].complete(request)
        waited = time.perf_counter() - asked
        body = orjson.dumps(_normal_completion(answer, route.model))
        await exchange.send_json(body, headers=_durations(started, waited))

    async def _stream(
        self, exchange: Exchange, request: dict[str, Any], route: Route, started: float
    ) -> None:
        chunks = self._experts[route.model].stream(request)
        async with aclosing(_normal_chunks(chunks, request, route.model)) as events:
            # The first chunk comes before the head, so that an expert that fails at once is
            # answered with a status and not with a broken stream.
            asked = time.perf_counter()
            first = await anext(events, None)
            waited = time.perf_counter() - asked
            await exchange.start_events(_durations(started, waited))
            if first is not None:
                await exchange.send_event(first)
            async for chunk in events:
                await exchange.send_event(chunk)
        await exchange.end_events()


def read_request(body: bytes) -> dict[str, Any]:
    """Parse and check what the gateway itself relies on. Raises ApiError 400.

    Everything else is left to the expert: fields this version knows nothing of pass through.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(
            f"The request body is not valid JSON: {error}.", code="invalid_json"
        ) from None
    if not isinstance(request, dict):
        raise ApiError(f"The request body must be a JSON object, got {_kind(request)}.")
    model, messages = request.get("model"), request.get("messages")
    if not isinstance(model, str) or not model:
        raise _wrong("model", "a model's name, or 'auto'", model)
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "a list of at least one message", messages)
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _wrong(f"messages[{number}]", "an object with role and content", message)
    if not isinstance(request.get("stream", False), bool | None):
        raise _wrong("stream", "true or false", request["stream"])
    return request


def _wrong(param: str, expected: str, given: Any) -> ApiError:
    return ApiError(f"{param!r} must be {expected}, got {_kind(given)}.", param=param)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {bool: "boolean", str: "string", dict: "object", list: "list"}
    name = names.get(type(value), "number")
    if value in ("", [], {}):
        return f"an empty {name}"
    return f"an {name}" if name == "object" else f"a {name}"


def _durations(started: float, waited: float) -> Headers:
    """Return the time since ``started``, and what of it was not ``waited`` for the expert."""
    passed = time.perf_counter() - started
    return [
        (b"openai-processing-ms", f"{passed * 1e3:.0f}".encode()),
        (b"x-crossroads-overhead-ms", f"{(passed - waited) * 1e3:.3f}".encode()),
    ]


def _normal_completion(answer: Completion, model: str) -> Completion:
    return {
        "id": new_completion_id(),
        "object": "chat.completion",
        "created": int(time.time()),
        **answer,
        "model": model,
    }


async def _normal_chunks(
    chunks: AsyncGenerator[Chunk, None], request: Mapping[str, Any], model: str
) -> AsyncGenerator[Chunk, None]:
    """Make a stream what OpenAI's clients expect: one id, the answering model, the role first."""
    identity: dict[str, Any] = {}
    usage = {"usage": None} if wants_usage(request) else {}
    begun: set[int] = set()
    async with aclosing(chunks) as source:
        async for chunk in source:
            if not identity:
                identity = {
                    "id": chunk.get("id") or new_completion_id(),
                    "object": "chat.completion.chunk",
                    "created": chunk.get("created") or int(time.time()),
                    "model": model,
                }
            choices = [_normal_choice(choice, begun) for choice in chunk["choices"]]
            yield {**usage, **chunk, **identity, "choices": choices}


def _normal_choice(choice: dict[str, Any], begun: set[int]) -> dict[str, Any]:
    index = choice.get("index", 0)
    delta = choice.get("delta") or {}
    if index not in begun:
        begun.add(index)
        delta = {"role": "assistant", **delta}
        if delta.get("content") is None:
            delta["content"] = ""
    return {"finish_reason": None, **choice, "index": index, "delta": delta}
