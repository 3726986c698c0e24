"""A server that answers with canned answers of ``chat``, written by the surfaces alone."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from crossroads.gateway.call import ANYBODY, Call
from crossroads.gateway.contracts import Surface
from crossroads.gateway.dialects import MemoryStore, ResponsesSurface, build_surfaces
from crossroads.gateway.errors import ApiError

USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 5,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 4},
}
ERRORS = {
    "error-400": ApiError("bad", param="messages"),
    "error-401": ApiError("no key", status=401, code="invalid_api_key"),
    "error-403": ApiError("not yours", status=403),
    "error-404": ApiError("no such model", status=404, code="model_not_found", param="model"),
    "error-413": ApiError("too large", status=413, code="request_too_large"),
    "error-429": ApiError("slow down", status=429),
    "error-500": ApiError("broken", status=500),
    "error-503": ApiError("overloaded", status=503),
}
TOOL_CALLS = [
    {
        "id": f"call_{city}",
        "type": "function",
        "function": {"name": "weather", "arguments": f'{{"city":"{city}"}}'},
    }
    for city in ("Paris", "Rome")
]
_MESSAGES: dict[str, dict[str, Any]] = {
    "text": {"content": "Hello, world \u2603"},
    "length": {"content": "Hello, wor"},
    "thinking": {"content": "4", "reasoning_content": "2 and 2"},
    "tools": {"content": "Let me see.", "tool_calls": TOOL_CALLS},
    "filtered": {"content": "", "refusal": "I will not."},
    "json": {"content": '{"city": "Paris", "people": 3}'},
}
_FINISH = {"length": "length", "tools": "tool_calls", "filtered": "content_filter"}


def answer(name: str) -> dict[str, Any]:
    """Return the whole answer of a canned model, named as the upstream would."""
    message = {"role": "assistant", **_MESSAGES[name]}
    finish = _FINISH.get(name, "stop")
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "upstream-name",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": USAGE,
    }


def chunks(name: str) -> list[dict[str, Any]]:
    """Return the same answer as chunks; texts in pieces of three characters."""
    message = _MESSAGES[name]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    for field in ("reasoning_content", "content", "refusal"):
        text = message.get(field, "")
        deltas += [{field: text[at : at + 3]} for at in range(0, len(text), 3)]
    for index, call in enumerate(message.get("tool_calls", ())):
        function = call["function"]
        head = {**call, "index": index, "function": {**function, "arguments": ""}}
        deltas.append({"tool_calls": [head]})
        for at in range(0, len(function["arguments"]), 5):
            piece = {"index": index, "function": {"arguments": function["arguments"][at : at + 5]}}
            deltas.append({"tool_calls": [piece]})
    last = [({}, _FINISH.get(name, "stop"))]
    written = [_chunk(delta, finish) for delta, finish in [*((d, None) for d in deltas), *last]]
    return [*written, {**_chunk({}, None), "choices": [], "usage": USAGE}]


def _chunk(delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "upstream-name",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


class CannedServer:
    """An ASGI application; ``model`` in the request says which answer it gets.

    ``cut-<n>`` is a stream that breaks after n chunks. ``calls`` are the calls it saw.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._surfaces = build_surfaces(store=MemoryStore(max_bytes=1 << 20, ttl_s=60))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await _live(receive, send)
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        path = scope["path"].removeprefix("/v1")
        surface = self._surfaces.by_path.get(path, self._surfaces.responses)
        try:
            await self._answer(scope, path, body, send)
        except ApiError as error:
            status = getattr(surface, "status", lambda e: e.status)(error)
            await _send(send, status, surface.error(error, "req_1"), b"application/json")

    async def _answer(self, scope: Any, path: str, body: bytes, send: Any) -> None:
        if path == "/messages/count_tokens":
            await _send_json(send, self._surfaces.messages.count_tokens(body))
            return
        if path.startswith("/responses/"):
            rest, query = path.removeprefix("/responses/"), scope["query_string"]
            found = await self._surfaces.stored.answer(scope["method"], rest, query, ANYBODY)
            await _send_json(send, found)
            return
        surface = self._surfaces.by_path[path]
        call = surface.parse(body, client=ANYBODY, headers=dict(scope["headers"]))
        if isinstance(surface, ResponsesSurface):
            await surface.prepare(call)
        self.calls.append(call)
        if call.model in ERRORS:
            raise ERRORS[call.model]
        if path == "/embeddings":
            await _send_json(send, surface.render(call, call.model, "embeddings", _vectors(call)))
        elif call.is_stream:
            await _stream(send, surface, call)
        else:
            await _send_json(send, surface.render(call, call.model, "chat", answer(call.model)))


def _vectors(call: Call) -> dict[str, Any]:
    data = [{"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}]
    if call.body.get("encoding_format") == "base64":
        data[0]["embedding"] = "AAAAPwAAgL8="  # the same two numbers
    return {"object": "list", "data": data, "usage": {"prompt_tokens": 2, "total_tokens": 2}}


async def _stream(send: Any, surface: Surface, call: Call) -> None:
    name, _, cut = call.model.partition("-")
    events = chunks("text" if cut else name)
    writer = surface.writer(call, call.model, "chat")
    await _start(send, 200, b"text/event-stream; charset=utf-8")
    for event in events[: int(cut) if cut else None]:
        await send({"type": "http.response.body", "body": writer.feed([event]), "more_body": True})
    last = writer.fail(ApiError("cut off", status=502)) if cut else writer.end()
    await send({"type": "http.response.body", "body": last})


async def _send_json(send: Any, body: bytes) -> None:
    await _send(send, 200, body, b"application/json")


async def _send(send: Any, status: int, body: bytes, kind: bytes) -> None:
    await _start(send, status, kind)
    await send({"type": "http.response.body", "body": body})


async def _start(send: Any, status: int, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"request-id", b"req_1"), (b"x-request-id", b"req_1")]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _live(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


@contextmanager
def serving(application: CannedServer) -> Iterator[str]:
    """Run an application on a free port of this machine; yield its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(application, ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
