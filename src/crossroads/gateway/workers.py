"""Several processes behind one port: a parent that watches, workers that serve.

Each worker is a fresh process of the same command line with a listener of its own on the shared
port (SO_REUSEPORT), so that the kernel spreads connections and no socket passes through the parent.
The parent starts a worker that dies again, hands on SIGTERM, SIGINT and SIGHUP, and ends with 1
when workers keep dying and none serves. A worker whose parent is gone stops gracefully.

The two talk over one socket pair per worker. The first worker tells what it serves by; the parent
keeps that in memory, and tells every worker that it starts from then on. A worker also writes when
it is ready. The end of file is the parent's death.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from crossroads.core.errors import UnavailableError

logger = logging.getLogger(__name__)

_BACKLOG = 2048
_VARIABLE = "CROSSROADS_WORKER"  # "index/count/descriptor/host/port" of the process it is set for
_READY, _STANDING = b"r", b"s"  # begin a message: kind, length, content
_LENGTH = 8  # bytes of it, the highest first
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_STABLE_S = 2.0  # a worker that served longer did not die of how it was started
_MOST_DEATHS = 5  # in a row of workers that were not stable
_GRACE_S = 5.0  # beyond the drain, before a worker is killed


def can_share_ports() -> bool:
    """Whether several processes can listen on one port here."""
    return hasattr(socket, "SO_REUSEPORT") and sys.platform != "win32"


def reserve(host: str, port: int) -> socket.socket:
    """Return a socket that holds ``port`` (0: any free one) for the workers without listening.

    Raises UnavailableError where the port is taken or the address is not one of this machine.
    """
    if not can_share_ports():
        raise UnavailableError("several workers need SO_REUSEPORT, which this system lacks; "
                               "start without --workers")  # fmt: skip
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Another gateway's workers would share the port with ours; an exclusive bind finds them.
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
            address = probe.getsockname()
        holder = socket.socket(family, kind, protocol)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnavailableError(
            f"port {port} on {host} cannot be used ({reason}); stop the other server or choose "
            "another port with --port"
        ) from error
    return holder


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker knows of itself.

    Attributes
    ----------
    index : from 0; a worker that is started again keeps it
    count : of workers
    standing : what the others serve by, as the first worker told; empty where none has yet
    """

    index: int
    count: int
    host: str
    port: int
    standing: bytes
    _line: socket.socket
    _telling: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of_this_process(cls) -> Worker | None:
        """Return the worker this process was started as; None where it is none.

        May be called once: the processes it starts itself are no workers.
        """
        given = os.environ.pop(_VARIABLE, None)
        if given is None:
            return None
        index, count, descriptor, port, host = given.split("/", 4)
        line = socket.socket(fileno=int(descriptor))
        line.set_inheritable(False)
        standing = _receive(line)
        worker = cls(int(index), int(count), host, int(port), standing, line)
        threading.Thread(target=worker._follow_parent, name="parent", daemon=True).start()
        return worker

    @property
    def is_first(self) -> bool:
        """Whether this is the one that does what only one may: the admin port."""
        return self.index == 0

    def listen(self) -> socket.socket:
        """Return this worker's own listener on the shared port. Raises UnavailableError."""
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, kind, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise UnavailableError(
                f"port {self.port} on {self.host} cannot be shared ({error.strerror}); "
                "stop the other server"
            ) from error
        return listener

    def report_ready(self) -> None:
        """Tell the parent that requests are accepted."""
        self._tell(_READY)

    def tell_standing(self, standing: bytes) -> None:
        """Have the parent keep what is served, for workers to come. Waits until it is read."""
        self._tell(_STANDING, standing)

    def _tell(self, kind: bytes, content: bytes = b"") -> None:
        with self._telling, suppress(OSError):
            self._line.sendall(_message(kind, content))

    def _follow_parent(self) -> None:
        with suppress(OSError):
            while self._line.recv(16):
                pass
        os.kill(os.getpid(), signal.SIGTERM)


def _message(kind: bytes, content: bytes) -> bytes:
    return kind + len(content).to_bytes(_LENGTH) + content


def _receive(line: socket.socket) -> bytes:
    """Return the content of the parent's one message; nothing where the parent is gone."""
    with line.makefile("rb") as stream:
        head = stream.read(1 + _LENGTH)
        return stream.read(int.from_bytes(head[1:]))


def supervise(
    command: Sequence[str],
    holder: socket.socket,
    *,
    workers: int,
    drain: float = 30.0,
    on_ready: Callable[[], None] = lambda: None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run ``workers`` processes of ``command`` until SIGTERM or SIGINT; return the exit code.

    The first worker starts alone, so that what is wrong with the configuration is said once; its
    exit code is then returned. The others start together.

    Parameters
    ----------
    command : argument vector of one worker, which calls ``Worker.of_this_process``
    holder : from ``reserve``
    workers : how many
    drain : seconds a worker has for requests in flight; killed some seconds later
    on_ready : called once, when all accept requests
    environment : of the workers; None for this process's
    """
    host, port = holder.getsockname()[:2]
    fleet = _Fleet(
        command=tuple(command),
        place=f"{port}/{host}",
        count=workers,
        drain=drain,
        on_ready=on_ready,
        environment=dict(os.environ if environment is None else environment),
    )
    return asyncio.run(fleet.run())


@dataclass(slots=True)
class _Fleet:
    command: tuple[str, ...]
    place: str
    count: int
    drain: float
    on_ready: Callable[[], None]
    environment: dict[str, str]
    _processes: dict[int, asyncio.subprocess.Process] = field(default_factory=dict)
    _ready: dict[int, float] = field(default_factory=dict)  # since when, time.monotonic
    _standing: bytes = b""
    _num_deaths: int = 0
    _was_ever_ready: bool = False
    _is_stopping: bool = False
    _code: int = 0
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin_stop)
        loop.add_signal_handler(signal.SIGHUP, self._hand_on, signal.SIGHUP)
        first = loop.create_task(self._keep(0))
        watches = [first]
        stopped = loop.create_task(self._stop.wait())
        try:
            await self._until(lambda: 0 in self._ready)
            if not self._stop.is_set():
                watches += [loop.create_task(self._keep(n)) for n in range(1, self.count)]
                await self._until(lambda: len(self._ready) == self.count)
            if not self._stop.is_set():
                self.on_ready()
            await stopped
        finally:
            stopped.cancel()
            self._is_stopping = True
            await self._end(watches)
        return self._code

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so() and not self._stop.is_set():
            await asyncio.sleep(0.01)

    async def _keep(self, index: int) -> None:
        """Start worker ``index``, and again whenever it dies."""
        pause = _FIRST_PAUSE_S
        while not self._is_stopping:
            code, served = await self._run_once(index)
            if self._is_stopping:
                return
            if served >= _STABLE_S:
                pause, self._num_deaths = _FIRST_PAUSE_S, 0
            elif not self._was_ever_ready:
                self._give_up(code if code > 0 else 1)  # it said itself what is wrong
                return
            self._num_deaths += 1
            if self._num_deaths > _MOST_DEATHS and not self._ready:
                logger.error("workers keep dying (last exit code %s); giving up", code)
                self._give_up(1)
                return
            logger.error("worker %d died (exit code %s); starting it again", index, code)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _run_once(self, index: int) -> tuple[int, float]:
        """Run worker ``index`` to its end; return its exit code, and seconds it was ready."""
        mine, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=mine)
        try:
            with theirs:
                spec = f"{index}/{self.count}/{theirs.fileno()}/{self.place}"
                process = await asyncio.create_subprocess_exec(
                    *self.command,
                    env={**self.environment, _VARIABLE: spec},
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C reaches the parent only, which hands it on
                )
            self._processes[index] = process
            if self._is_stopping:
                process.terminate()
            writer.write(_message(_STANDING, self._standing))
            listening = asyncio.get_running_loop().create_task(self._listen(index, reader))
            try:
                code = await process.wait()
            finally:
                listening.cancel()
                del self._processes[index]
        finally:
            writer.close()
        since = self._ready.pop(index, None)
        return code, 0.0 if since is None else time.monotonic() - since

    async def _listen(self, index: int, line: asyncio.StreamReader) -> None:
        """Take what a worker tells until it ends."""
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                kind = await line.readexactly(1)
                length = int.from_bytes(await line.readexactly(_LENGTH))
                content = await line.readexactly(length)
                if kind == _READY:
                    self._ready[index] = time.monotonic()
                    self._was_ever_ready = True
                elif kind == _STANDING:
                    self._standing = content

    def _begin_stop(self) -> None:
        """Stop gracefully at the first signal; a second one, handed on, cuts the drain short."""
        self._is_stopping = True
        self._hand_on(signal.SIGTERM)
        self._stop.set()

    def _give_up(self, code: int) -> None:
        self._code = code
        self._begin_stop()

    def _hand_on(self, number: int) -> None:
        for index, process in list(self._processes.items()):
            if number == signal.SIGHUP and index not in self._ready:
                continue  # it reads the configuration now; the signal would end it
            with suppress(ProcessLookupError):
                process.send_signal(number)

    async def _end(self, watches: list[asyncio.Task[None]]) -> None:
        """Wait for the workers to stop; kill those that do not."""
        _, late = await asyncio.wait(watches, timeout=self.drain + _GRACE_S)
        if late:
            logger.error("%d workers did not stop in time; killing them", len(late))
            self._hand_on(signal.SIGKILL)
            await asyncio.wait(late)
