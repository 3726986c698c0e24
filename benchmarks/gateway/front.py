"""What HTTP itself costs: CPU per request of an application that does nothing else.

uvicorn's own protocol without our limits, the same with them (``http: standard``), and ours
(``http: fast``), each a process; the same requests go to all of them in turns, the median of the
rounds counts.

    python benchmarks/gateway/front.py [--rounds 5] [--requests 20000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from load import request_bytes, run
from servers import free_port, running

from crossroads.core.provenance import machine

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "gateway-front.json"
KINDS = ("uvicorn", "standard", "fast")
ANSWER = b"x" * 294
HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", b"294"),
    (b"x-request-id", b"req_0123456789abcdef"),
    (b"x-crossroads-model", b"small"),
]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Read the request, answer 294 bytes."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


def serve(kind: str, port: int) -> None:
    import uvicorn
    import uvloop

    from crossroads.gateway.serving import http_protocol

    config = uvicorn.Config(
        app,
        http="httptools" if kind == "uvicorn" else http_protocol(kind),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    listener = socket.create_server(("127.0.0.1", port))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve(sockets=[listener]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], int(options.serve[1]))
        return
    requests = [request_bytes("small", stream=False, number=0, words=24)] * options.requests
    cpu_us: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        servers = {}
        for kind in KINDS:
            port = free_port()
            command = [sys.executable, __file__, "--serve", kind, str(port)]
            log = Path(folder) / f"{kind}.log"
            servers[kind] = stack.enter_context(running(command, port=port, health="/", log=log))
        for round_ in range(options.rounds + 1):
            for kind, server in servers.items():
                before = server.cpu_s()
                outcome = run(server.port, requests, connections=32)
                assert outcome.failures == 0
                if round_:  # the first warms up
                    cpu_us[kind].append(1e6 * (server.cpu_s() - before) / len(requests))
    medians = {kind: round(statistics.median(values), 2) for kind, values in cpu_us.items()}
    body = {
        "question": "CPU microseconds per request of a bare application at 32 connections",
        "machine": machine(),
        "settings": {
            "rounds": options.rounds,
            "requests": options.requests,
            "request_bytes": len(requests[0]),
            "answer_bytes": len(ANSWER),
        },
        "cpu_us": medians,
        "all_rounds_cpu_us": {k: [round(v, 2) for v in values] for k, values in cpu_us.items()},
    }
    RESULT.write_text(json.dumps(body, indent=1) + "\n", "utf-8")
    for kind, value in medians.items():
        print(f"{kind:10s} {value:6.2f} us")


if __name__ == "__main__":
    main()
