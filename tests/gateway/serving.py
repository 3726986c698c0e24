"""A gateway on a real socket, in a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from crossroads.core.decision import Decision
from crossroads.core.errors import UsageError
from crossroads.gateway.app import Gateway


@contextmanager
def serving(gateway: Gateway) -> Iterator[str]:
    """Run a gateway on a free port by uvicorn alone; yield its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        gateway, http="httptools", ws="none", lifespan="on", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve(sockets=[listener])), name="gateway"
    )
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the gateway did not start"
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


class FakeRouter:
    """Sends prompts with a digit to ``first`` and all others to ``second``."""

    def __init__(self, first: str, second: str) -> None:
        self.first, self.second = first, second
        self.asked: list[tuple[str, str | None]] = []

    def route(self, prompt: str, *, rule: str | None = None, seed: int = 0) -> Decision:
        self.asked.append((prompt, rule))
        if rule == "broken":
            raise UsageError("unknown decision rule 'broken'; Known: argmax")
        chosen = self.first if any(c.isdigit() for c in prompt) else self.second
        return Decision(
            chosen=(chosen,),
            scores={self.first: 0.25, self.second: 0.75},
            rule=rule or "argmax",
            reason=f"{chosen} has the highest\nestimated quality, \u00bd of it",
            propensity=1.0,
            predicted_quality=0.75,
            predicted_cost_usd=0.0000015,
            confidence=0.5,
            seconds=0.0001,
            router="fake",
            version="1",
            seed=seed,
        )
