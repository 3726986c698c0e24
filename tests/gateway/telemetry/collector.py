"""A stand-in for an OpenTelemetry collector: keeps what is posted to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Posted:
    """Bodies by path, and the headers of the last request; ``status`` is what it answers."""

    def __init__(self) -> None:
        self.bodies: dict[str, list[bytes]] = {}
        self.headers: dict[str, str] = {}
        self.url = ""
        self.status = 200


@contextmanager
def collecting() -> Iterator[Posted]:
    posted = Posted()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            posted.headers = {name.lower(): value for name, value in self.headers.items()}
            posted.bodies.setdefault(self.path, []).append(body)
            self.send_response(posted.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        posted.url = f"http://127.0.0.1:{server.server_port}"
        yield posted
        server.shutdown()
        thread.join()
