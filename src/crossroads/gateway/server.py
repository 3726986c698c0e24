"""Runs a gateway: one process, one event loop, one socket; stops gracefully."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Literal, Protocol

import uvicorn
from starlette.types import ASGIApp

from crossroads.core.errors import CrossroadsError, UnavailableError
from crossroads.gateway.serving import FrontSettings, http_protocol

_BACKLOG = 2048
_SWITCH_S = 0.001  # a fifth of Python's own: threads that decide long prompts hold up the loop less


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to ``host`` and ``port`` (0: any free one).

    Raises UnavailableError with the remedy where that is not possible.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UnavailableError(f"host {host!r} cannot be used: {_reason(error)}") from error
    try:
        if sys.platform != "win32":  # there it would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)  # at once: binding alone does not fail where another listens
    except OSError as error:
        listener.close()
        raise UnavailableError(
            f"port {port} on {host} cannot be used ({_reason(error)}); stop the other server or "
            "choose another port with --port"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the base URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Served(Protocol):
    """What runs: an application with a beginning and an end."""

    @property
    def gateway(self) -> ASGIApp: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def reload(self) -> Any: ...


def serve(
    served: Served,
    listener: socket.socket,
    *,
    drain: float = 30.0,
    http: Literal["standard", "fast"] = "standard",
    front: FrontSettings | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGINT or SIGTERM, then finish the requests in flight for ``drain`` seconds.

    SIGHUP reloads the configuration. ``on_ready`` is called when the socket accepts requests.
    Raises CrossroadsError where a part cannot start.
    """
    sys.setswitchinterval(_SWITCH_S)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(
            _serve(
                served,
                listener,
                drain=drain,
                http=http,
                front=front or FrontSettings(),
                on_ready=on_ready,
            )
        )


async def _serve(
    served: Served,
    listener: socket.socket,
    *,
    drain: float,
    http: Literal["standard", "fast"],
    front: FrontSettings,
    on_ready: Callable[[], None],
) -> None:
    config = uvicorn.Config(
        served.gateway,
        http=http_protocol(http, front),
        ws="none",
        lifespan="off",  # started below, where an error still has its type
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here goes by where a client says it comes from
        timeout_keep_alive=round(front.keep_alive_s),
        timeout_graceful_shutdown=max(1, round(drain)),
        backlog=_BACKLOG,
    )
    try:
        await served.start()
        _reload_on_hangup(served)
        await _Server(config, on_ready).serve(sockets=[listener])
    finally:
        await served.close()
        listener.close()


def _reload_on_hangup(served: Served) -> None:
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        with suppress(CrossroadsError):  # the old configuration serves on; the log says why
            await served.reload()

    def begin() -> None:
        task = loop.create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, begin)


class _Server(uvicorn.Server):
    """Tells when it is ready, and treats a signal as a wish that was granted, not as a death."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # The base class raises the signal again after the drain, which would end the process with
        # a signal's exit code. A second signal does not wait for requests in flight.
        self.force_exit = self.should_exit
        self.should_exit = True


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's where it is installed (it does not exist for Windows)."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
