"""Runs the admin server on a real socket, in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from crossroads.gateway.admin import AdminServer, AdminSettings, AdminSources, build_admin
from crossroads.gateway.server import bind, url_of


@contextmanager
def serving(sources: AdminSources, settings: AdminSettings | None = None) -> Iterator[str]:
    """Yield the URL of a running admin server."""
    listener = bind("127.0.0.1", 0)
    url = url_of(listener)
    ready, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        server = AdminServer(build_admin(sources, settings), listener)
        await server.start()
        ready.set()
        await stop.wait()
        await server.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert ready.wait(10), "the admin server did not start"
    try:
        yield url
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(10)
