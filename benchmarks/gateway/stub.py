"""An upstream that costs next to nothing: fixed answers on loopback, for benchmarks and tests.

Usage: python benchmarks/gateway/stub.py [--port N] [--delay S] [--gap S] [--events N] [--fault F]

Without ``--port`` it takes any free one, and says which.

``POST`` to any path gets a fixed chat completion (a JSON body of 294 bytes) or, when the body
says ``"stream":true``, a stream of 23 events in one write. Nothing of a request is looked at but
its length and that field, so that what is measured is who asks.

Faults: ``cut-after:K`` closes after K events (K = 0: before the answer), ``stall-after:K`` sends K
events and nothing more, ``status:N`` answers with that status, ``no-done`` leaves out [DONE],
``malformed-at:K`` breaks event K.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
from dataclasses import dataclass

NUM_EVENTS = 23
ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"stub-model",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"Paris is the capital of '
    b'France, on the Seine."},"finish_reason":"stop"}],"usage":{"prompt_tokens":12,'
    b'"completion_tokens":11,"total_tokens":23}}'
)
_WORDS = ("Paris", " is", " the", " capital", " of", " France", ",", " on", " the", " Seine", ".")


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How the stub answers.

    Attributes
    ----------
    delay : seconds before an answer
    gap : seconds between two events; 0 writes all at once
    num_events : of a stream, [DONE] included
    fault, at : see the module
    """

    delay: float = 0.0
    gap: float = 0.0
    num_events: int = NUM_EVENTS
    fault: str = ""
    at: int = 0


def events(num_events: int = NUM_EVENTS) -> list[bytes]:
    """Return the events of a stream: a role, words, the finish, and [DONE]."""
    deltas = ['{"role":"assistant","content":""}']
    deltas += [f'{{"content":"{_WORDS[i % len(_WORDS)]}"}}' for i in range(num_events - 3)]
    finishes = ["null"] * len(deltas) + ['"stop"']
    return [
        (
            'data: {"id":"chatcmpl-stub","object":"chat.completion.chunk","created":1700000000,'
            f'"model":"stub-model","choices":[{{"index":0,"delta":{delta},"finish_reason":'
            f"{finish}}}]}}\n\n"
        ).encode()
        for delta, finish in zip([*deltas, "{}"], finishes, strict=True)
    ] + [b"data: [DONE]\n\n"]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(ANSWER),
    ANSWER,
)


class Stub(asyncio.Protocol):
    """One connection. Takes requests with a content-length, one after the other."""

    def __init__(self, behaviour: Behaviour, parts: list[bytes]) -> None:
        self._behaviour = behaviour
        self._parts = parts
        self._whole = _STREAM_HEAD + b"".join(parts) + b"0\r\n\r\n"
        self._buffer = b""
        self._is_simple = behaviour == Behaviour(num_events=behaviour.num_events)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        while buffer:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                break
            head = buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r", 1)[0]) if at >= 0 else 0
            total = end + 4 + length
            if len(buffer) < total:
                break
            self._answer(b'"stream":true' in buffer[end:total].replace(b" ", b""))
            buffer = buffer[total:]
        self._buffer = buffer

    def _answer(self, is_stream: bool) -> None:
        if self._is_simple:
            self._transport.write(self._whole if is_stream else _JSON)
            return
        asyncio.get_running_loop().call_later(self._behaviour.delay, self._begin, is_stream)

    def _begin(self, is_stream: bool) -> None:
        behaviour = self._behaviour
        if behaviour.fault == "status":
            body = b'{"error":{"message":"no","type":"api_error","code":null,"param":null}}'
            head = b"HTTP/1.1 %d Fault\r\ncontent-type: application/json\r\ncontent-length: %d"
            self._transport.write(head % (behaviour.at, len(body)) + b"\r\n\r\n" + body)
        elif behaviour.fault == "cut-after" and behaviour.at == 0:
            self._transport.close()
        elif not is_stream:
            self._transport.write(_JSON)
        else:
            self._transport.write(_STREAM_HEAD)
            self._send(0)

    def _send(self, number: int) -> None:
        """Write event ``number`` and all that may follow it at once."""
        behaviour = self._behaviour
        while not self._transport.is_closing():
            if behaviour.fault in {"cut-after", "stall-after"} and number == behaviour.at:
                if behaviour.fault == "cut-after":
                    self._transport.close()
                return
            if number == len(self._parts):
                self._transport.write(b"0\r\n\r\n")
                return
            self._transport.write(self._parts[number])
            number += 1
            if behaviour.gap:
                asyncio.get_running_loop().call_later(behaviour.gap, self._send, number)
                return


def parts_of(behaviour: Behaviour) -> list[bytes]:
    """Return the events of a behaviour as HTTP chunks."""
    datas = events(behaviour.num_events)
    if behaviour.fault == "no-done":
        datas.pop()
    elif behaviour.fault == "malformed-at":
        datas[behaviour.at] = b'data: {"choices": [}\n\n'
    return [_chunk(data) for data in datas]


async def serve(port: int, behaviour: Behaviour) -> None:
    """Serve on loopback until SIGTERM or SIGINT; print where. ``port`` 0 takes any free one."""
    loop = asyncio.get_running_loop()
    parts = parts_of(behaviour)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    server = await loop.create_server(lambda: Stub(behaviour, parts), sock=listener, backlog=1024)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    why = "" if port else " (any free port; choose one with --port N)"
    print(f"stub on 127.0.0.1:{listener.getsockname()[1]} pid {os.getpid()}{why}", flush=True)
    await stop.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="any free one where left out")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before an answer")
    parser.add_argument("--gap", type=float, default=0.0, help="seconds between two events")
    parser.add_argument("--events", type=int, default=NUM_EVENTS, help="of a stream, with [DONE]")
    parser.add_argument("--fault", default="", help="cut-after:K, stall-after:K, status:N, ...")
    options = parser.parse_args()
    fault, _, at = options.fault.partition(":")
    known = {"", "cut-after", "stall-after", "status", "no-done", "malformed-at"}
    if fault not in known or (at and not at.isdigit()) or options.events < 3:
        parser.error("unknown fault, or fewer than 3 events")
    behaviour = Behaviour(
        delay=options.delay,
        gap=options.gap,
        num_events=options.events,
        fault=fault,
        at=int(at or 0),
    )
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(options.port, behaviour))
    else:
        uvloop.run(serve(options.port, behaviour))


if __name__ == "__main__":
    main()
