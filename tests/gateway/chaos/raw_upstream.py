"""An upstream that writes its own bytes: what a well-behaved HTTP library would not send."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any, Self

from tests.gateway.fake_upstream import USAGE, chunk, whole_answer

_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


def plain(status: int, body: Any, *headers: str) -> bytes:
    """A whole JSON response."""
    data = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Whatever", "content-type: application/json", *headers]
    return "\r\n".join([*lines, f"content-length: {len(data)}", "", ""]).encode() + data


def stream_of(pieces: list[str]) -> bytes:
    """A whole stream that says these pieces, and its tokens."""
    chunks = [chunk({"role": "assistant", "content": ""})]
    chunks += [chunk({"content": piece}) for piece in pieces]
    chunks += [chunk({}, "stop"), {**chunk({}), "choices": [], "usage": USAGE}]
    datas = [json.dumps(c) for c in chunks] + ["[DONE]"]
    return _STREAM + "".join(f"data: {data}\n\n" for data in datas).encode()


def answer_of(text: str) -> bytes:
    answer = whole_answer()
    answer["choices"][0]["message"]["content"] = text
    return plain(200, answer)


Script = Callable[[dict[str, Any], int], bytes | None]


class RawUpstream:
    """Answers each request with the bytes of ``script``; None never answers.

    Attributes
    ----------
    bodies : of all requests, in order
    """

    def __init__(self, script: Script) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._script = script
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="raw")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False where the connection is over."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        self.bodies.append(body)
        data = self._script(body, len(self.bodies))
        if data is None:
            await reader.read()  # until the caller gives up
            return False
        writer.write(data)
        await writer.drain()
        return b"connection: close" not in data[:200]
