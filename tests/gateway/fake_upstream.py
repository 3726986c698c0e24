"""An OpenAI-compatible server on loopback that fails in the way the asked model is named after."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from aiohttp import web

TEXT = "Zw\u00f6lf Bl\u00fcten \U0001f33c."
PIECES = [TEXT[i : i + 3] for i in range(0, len(TEXT), 3)]
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
ERROR = {"message": "no more tokens", "type": "some_type", "code": "some_code", "param": "prompt"}

Handler = Callable[["FakeUpstream", web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def chunk(delta: dict[str, Any], finish: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {
        "id": "chatcmpl-up",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "upstream-name-2024",
        "choices": [choice],
        **fields,
    }


def events(*, done: bool = True, finish: str | None = "stop", usage: bool = False) -> list[str]:
    chunks = [chunk({"role": "assistant", "content": ""})]
    chunks += [chunk({"content": piece}) for piece in PIECES]
    if finish:
        chunks.append(chunk({}, finish))
    if usage:
        chunks.append({**chunk({}), "choices": [], "usage": USAGE})
    datas = [json.dumps(c, ensure_ascii=False) for c in chunks] + (["[DONE]"] if done else [])
    return [f"data: {data}\n\n" for data in datas]


def whole_answer() -> dict[str, Any]:
    message = {"role": "assistant", "content": TEXT}
    return {
        "id": "chatcmpl-up",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "upstream-name-2024",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": USAGE,
    }


class FakeUpstream:
    """Runs in a thread of its own; ``with FakeUpstream() as upstream: upstream.url``.

    Attributes
    ----------
    requests : (headers, body) of every call, in order
    abandoned : set when a caller left before its answer was complete
    """

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.abandoned = threading.Event()
        self.num_sent = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake-upstream")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append((dict(request.headers), body))
        name, _, argument = body["model"].partition("-")
        if name == "status":
            return _status(int(argument))
        try:
            if body.get("stream"):
                return await self._stream(request, name, argument)
            return await self._whole(request, name, argument)
        except (asyncio.CancelledError, ConnectionError):
            self.abandoned.set()
            raise

    async def _whole(self, request: web.Request, name: str, argument: str) -> web.StreamResponse:
        if name == "slow":
            await asyncio.sleep(float(argument))
        if name == "html":
            return web.Response(text="<html>It works!</html>", content_type="text/html")
        if name == "error":
            code = {"code": int(argument)} if argument else {}
            return web.json_response({"error": {**ERROR, **code}})
        if name == "hangup":
            assert request.transport is not None
            request.transport.abort()
        if name == "cut":
            response = web.StreamResponse(headers={"content-type": "application/json"})
            await response.prepare(request)
            await response.write(b'{"choices": [')
            assert request.transport is not None
            request.transport.close()
            return response
        return web.json_response(whole_answer())

    async def _stream(self, request: web.Request, name: str, argument: str) -> web.StreamResponse:
        if name == "html":
            return web.Response(text="<html>It works!</html>", content_type="text/html")
        if name == "whole":
            return web.json_response(whole_answer())
        if name == "slow":
            await asyncio.sleep(float(argument))
        if name == "hangup":
            assert request.transport is not None
            request.transport.abort()
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for portion in _portions(name, argument):
            if isinstance(portion, float):
                await asyncio.sleep(portion)
            elif portion is None:
                assert request.transport is not None
                request.transport.close()  # after what was written, without the last chunk
                return response
            else:
                await response.write(portion)
                self.num_sent += 1
        await response.write_eof()
        return response


def _status(status: int) -> web.Response:
    headers = {"retry-after": "7"} if status in {429, 503} else {}
    if status == 500:
        return web.Response(status=500, text="Traceback: it broke\nbadly")
    return web.json_response({"error": ERROR}, status=status, headers=headers)


def _portions(name: str, argument: str) -> list[bytes | float | None]:
    """What is written to the stream: bytes, a pause in seconds, or None to cut the connection."""
    good = [event.encode() for event in events()]
    joined = b"".join(good)
    number = int(argument) if argument.isdigit() else 0
    pause = 0.02  # long enough for the reader to see two portions as two
    long_piece = f"data: {json.dumps(chunk({'content': 'x' * 10_000}))}\n\n".encode()
    in_stream = f"data: {json.dumps({'error': ERROR})}\n\n".encode()
    faults: dict[str, list[bytes | float | None]] = {
        "cut": [*good[:number], pause, None],
        "half": [*good[:3], good[3][:20]],  # ends in the middle of an event, politely
        "stall": [*good[:number], 30.0],
        "malformed": [*good[:number], b'data: {"choices": [}\n\n', *good[number:]],
        "notchunk": [*good[:2], b'data: {"hello": 1}\n\n', *good[2:]],
        "midway": [*good[:3], in_stream],
        "empty": [],
        "onlydone": [b"data: [DONE]\n\n"],
        "nodone": [event.encode() for event in events(done=False)],
        "nofinish": [event.encode() for event in events(done=False, finish=None)],
        "lingers": [*good, 30.0],  # says [DONE] and keeps the connection open
        "notlast": [*good[:-1], b"data: [DONE]"],  # without its empty line
        "bytes": [bytes([byte]) for byte in joined],  # splits every character and event
        "split": [p for i in range(0, len(joined), 37) for p in (joined[i : i + 37], pause / 10)],
        "crlf": [event.replace(b"\n", b"\r\n") for event in good],
        "comments": [part for event in good for part in (b": ping\n\n", event)],
        "long": [good[0], *[long_piece] * number, *good[-2:]],
        "usage": [event.encode() for event in events(usage=True)],
        "norole": [*good[1:]],
        "trickle": [p for event in good for p in (event, pause * number)],
    }
    return faults.get(name, [*good])
