"""One worker of the tests: a plain ASGI application behind uvicorn, told what to do by its words.

``ok``         serves: /pid answers its number, /slow streams for a second, /told what it was told
``refuses``    says what is wrong with the configuration and ends with 2
``dies-late``  the first worker serves, the others end at once with 3
``dies-soon``  ends with 3 as soon as it is ready
``tells``      the first worker tells what it serves by
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import uvicorn

from crossroads.gateway.workers import Worker

RELOADS = {"count": 0}
TOLD: list[str] = []


async def app(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    head = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    if scope["path"] == "/slow":
        for number in range(5):
            await send({"type": "http.response.body", "body": b"%d\n" % number, "more_body": True})
            await asyncio.sleep(0.2)
        await send({"type": "http.response.body", "body": b"end\n", "more_body": False})
        return
    if scope["path"] == "/told":
        body = f"{os.getpid()} {TOLD[0]!r}".encode()
        await send({"type": "http.response.body", "body": body, "more_body": False})
        return
    text = f"{os.getpid()} {os.environ.get('CROSSROADS_WORKER')} {RELOADS['count']}"
    await send({"type": "http.response.body", "body": text.encode(), "more_body": False})


class Server(uvicorn.Server):
    worker: Worker

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.worker.report_ready()

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.should_exit = True


def main(manner: str) -> int:
    worker = Worker.of_this_process()
    assert worker is not None
    if manner == "refuses":
        sys.stderr.write("Error: config gateway.yaml: expected something else\n")
        return 2
    if manner == "dies-late" and not worker.is_first:
        return 3
    if manner == "dies-soon":
        worker.report_ready()
        return 3
    TOLD.append(worker.standing.decode())
    if manner == "tells" and worker.is_first:
        worker.tell_standing(b"by-the-first")

    def reload(*_: Any) -> None:
        RELOADS["count"] += 1

    signal.signal(signal.SIGHUP, reload)
    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=5)
    server = Server(config)
    server.worker = worker
    server.run(sockets=[worker.listen()])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
