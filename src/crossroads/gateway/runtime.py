"""A gateway that lives: its snapshot, what outlives a reload, and the admin server beside it."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from crossroads.core.errors import CrossroadsError, UnavailableError
from crossroads.gateway.admin.settings import AdminSettings
from crossroads.gateway.app import Gateway
from crossroads.gateway.build import Built, Lasting, build
from crossroads.gateway.call import Client
from crossroads.gateway.config import ServeConfig
from crossroads.gateway.dialects import build_surfaces
from crossroads.gateway.engine import Idempotency
from crossroads.gateway.ledger import (
    LedgerReader,
    SqlLedger,
    is_decision,
    open_ledger,
    owner_of,
    parse_feedback,
    unknown_decision,
)
from crossroads.gateway.once import Once
from crossroads.gateway.standing import Keeper, Mark, Standing, marked, marks_of
from crossroads.gateway.telemetry import (
    GatewayTelemetry,
    Reading,
    compose_health,
    engine_source,
    health_source,
)

if TYPE_CHECKING:
    from crossroads.gateway.checking import Finding

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Of the configuration, what only a new process can change.
_FIXED = (
    *("host", "port", "workers", "http", "front", "ledger", "telemetry", "admin"),
    *("idempotency", "responses", "watch_s"),
)
# Between two looks for garbage: calls leave next to none, and what they hold while they run is
# looked at in vain.
_COLLECTIONS = (10_000, 20, 10)
# A row of another worker is waited for as long as a commit may take, and never longer than this.
_COMMIT_S, _LONGEST_WAIT_S = 0.1, 2.0


class Runtime:
    """Builds everything a configuration asks for, serves, and follows changes of its files.

    Raises what ``build`` raises, and CrossroadsError where the ledger or a log cannot be opened.

    Parameters
    ----------
    config : checked
    read : reads the configuration anew, with the command line's options; None without a file
    path : of that file
    shared : folder through which the workers of one gateway share their figures; None for one
    admin_socket : bound, where this process serves the admin port
    url : where clients reach the gateway, to be shown
    advise : what of a snapshot is worth a warning in the log; None where another process says so
        for all
    standing : what the other workers serve by, where this one takes the place of a dead one; then
        ``config`` is that of it
    keeper : is told what is served, for a worker to come
    """

    def __init__(
        self,
        config: ServeConfig,
        *,
        read: Callable[[], ServeConfig] | None = None,
        path: str | Path | None = None,
        shared: Path | None = None,
        admin_socket: socket.socket | None = None,
        url: str = "",
        advise: Callable[[Built], Sequence[Finding]] | None = None,
        standing: Standing | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self.config = self._first = config
        self.path = None if path is None else Path(path)
        self._read = read
        self._advise = advise
        self.telemetry = GatewayTelemetry(
            config.telemetry, directory=shared, secrets=_secrets(config)
        )
        self.ledger: SqlLedger | None = None
        self.reader: LedgerReader | None = None
        self._reading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger-reader")
        self._lasting = Lasting(
            surfaces=build_surfaces(config.responses),
            telemetry=self.telemetry,
            standing=standing,
        )
        self._marks = self._look(config) if standing is None else standing.marks
        self.built = build(config, self._lasting)
        self._lasting.standing = None  # from now on the files are looked at
        self._admin_socket = admin_socket
        self.url = url
        once = None if config.idempotency is None else Once(Idempotency(config.idempotency))
        self.gateway = Gateway(self.built.services, once=once)
        self._keeper = keeper
        self._to_keep = asyncio.Event()
        self._equip(self.built)
        self._closing = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._retiring: dict[asyncio.Task[None], Built] = {}
        self._reloading = asyncio.Lock()
        self._problem, self._note = "", "" if standing is None else standing.note
        self._told = self._advice(self.built)
        self._is_new = standing is None
        self._reloaded_at = time.time()

    async def start(self) -> None:
        """Open the ledger and start every part. Raises CrossroadsError where one cannot work."""
        closing = self._closing
        if self.config.ledger is not None:
            self.ledger = await asyncio.to_thread(open_ledger, self.config.ledger)
            closing.push_async_callback(asyncio.to_thread, self.ledger.close)
            self.reader = LedgerReader(self.config.ledger.url)
            closing.push_async_callback(self.read, self.reader.close)
            self._lasting.ledger = self.ledger
            self.built.services.ledger = self.ledger
        closing.push_async_callback(self._lasting.surfaces.close)
        self.telemetry.watch(engine_source(self._upstreams))
        self.telemetry.watch(health_source(self.health))
        self.telemetry.watch(self._ledger_readings)
        self.telemetry.watch(self._refusals)
        await self.telemetry.start()
        closing.push_async_callback(self.telemetry.close)
        await self.built.governor.start()
        closing.push_async_callback(self._close_built)
        await self.gateway.start()
        closing.push_async_callback(self.gateway.close)
        if self._read is not None and self.config.watch_s is not None:
            self._tasks.append(asyncio.create_task(self._follow(self.config.watch_s)))
        closing.push_async_callback(self._end_tasks)
        if self._admin_socket is not None and self.config.admin is not None:
            await self._start_admin(self._admin_socket, self.config.admin)
        if self._keeper is not None:
            await asyncio.to_thread(self._keep, self._keeper)  # the next workers begin with it
            self._tasks.append(asyncio.create_task(self._keep_on(self._keeper)))
        if self._is_new:  # else it was told when the worker before started
            self._warn(self._told)
        closing.callback(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(*_COLLECTIONS)

    async def _start_admin(self, listener: socket.socket, settings: AdminSettings) -> None:
        # Imported here: only one process of a gateway has an admin server.
        from crossroads.gateway.admin import AdminServer, build_admin
        from crossroads.gateway.admin_sources import sources_of
        from crossroads.gateway.telemetry import History

        history = History(self.telemetry.figures)
        await history.start()
        self._closing.push_async_callback(history.close)
        sources = sources_of(self, history, gateway_url=self.url)
        server = AdminServer(build_admin(sources, settings), listener)
        await server.start()
        self._closing.push_async_callback(server.close)

    async def close(self) -> None:
        """Stop what was started, last first; what was counted and recorded is written."""
        await self._closing.aclose()
        self._reading.shutdown()

    async def _close_built(self) -> None:
        if self.built.cache is not None:
            await self.built.cache.close()
        await self.built.governor.close()

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for before in self._retiring.values():
            before.services.hurry()  # the server waited for its last requests already
        await asyncio.gather(*self._retiring)

    async def reload(self) -> dict[str, Any]:
        """Serve new requests by the configuration as it is now; those in flight keep the old one.

        Returns ``changed`` and ``message``. A configuration that is wrong changes nothing: raises
        CrossroadsError, which ``health`` shows until a reload succeeds. What only a restart can
        change is served as it was: the log and ``health`` say so.
        """
        first = self._first
        async with self._reloading:
            try:
                config, marks = await asyncio.to_thread(self._read_anew)
                fixed = [name for name in _FIXED if getattr(config, name) != getattr(first, name)]
                config = config.model_copy(update={n: getattr(first, n) for n in fixed})
                self._lasting.before = self.built
                built = await asyncio.to_thread(build, config, self._lasting)
                await self._take(built)
            except CrossroadsError as error:
                self._problem = str(error)
                logger.error("the configuration was not reloaded: %s", error)
                raise
            except Exception as error:
                self._problem = f"a defect of the server ({type(error).__name__}); see its log"
                logger.exception("the configuration was not reloaded")
                raise UnavailableError(f"not reloaded: {self._problem}") from error
            self._problem = ""
            self._reloaded_at = time.time()
            self.config, self._marks = config, marks
            message = "the configuration was reloaded"
            self._note = f"{', '.join(fixed)} will only change with a restart" if fixed else ""
            if self._note:
                message += f"; {self._note}"
                logger.warning("%s", message)
            else:
                logger.info("%s", message)
            self._to_keep.set()
            found = await asyncio.to_thread(self._advice, built)
            self._warn(finding for finding in found if finding not in self._told)
            self._told = found
            return {"changed": True, "message": message}

    def _advice(self, built: Built) -> Sequence[Finding]:
        """Return what works in a snapshot, and still is hardly meant."""
        try:
            return () if self._advise is None else self._advise(built)
        except CrossroadsError:
            return ()  # a file has changed again: the reload that follows tells
        except Exception:
            logger.exception("what is doubtful in the configuration was not found out")
            return ()

    def _warn(self, found: Iterable[Finding]) -> None:
        for finding in found:
            logger.warning("%s: %s", finding.place, finding.message)

    async def _keep_on(self, keeper: Keeper) -> None:
        """Have kept what is served whenever it changed."""
        while True:
            await self._to_keep.wait()
            self._to_keep.clear()
            await asyncio.to_thread(self._keep, keeper)

    def _keep(self, keeper: Keeper) -> None:
        keeper.keep(self.built, self._marks, note=self._note)

    def health(self) -> dict[str, Any]:
        """Return how every part is: ``status`` and ``parts``."""
        built = self.built
        checks: dict[str, Callable[[], Any]] = {
            "upstreams": self._upstream_health,
            "policies": built.policies.health,
            "governance": built.governor.health,
            "telemetry": self.telemetry.health,
            "configuration": self._configuration_health,
        }
        if self.ledger is not None:
            checks["ledger"] = self.ledger.health
        if built.cache is not None:
            checks["cache"] = built.cache.health
        return compose_health(checks)

    def _upstreams(self) -> dict[str, dict[str, Any]]:
        return self.built.engine.health()

    def _upstream_health(self) -> dict[str, Any]:
        told = self._upstreams().items()
        waiting = [name for name, facts in told if facts["waits_for_probe"]]
        broken = [n for n, facts in told if facts["state"] != "closed" and n not in waiting]
        return {"status": "degraded" if broken else "ok", "broken": broken, "waiting": waiting}

    def _refusals(self) -> list[Reading]:
        refused = self.gateway.num_refused
        return [Reading("crossroads_refused", n, (str(status),)) for status, n in refused.items()]

    def _ledger_readings(self) -> list[Reading]:
        if self.ledger is None:
            return []
        return [Reading("crossroads_ledger_queue", self.ledger.health()["queued"])]

    def _configuration_health(self) -> dict[str, Any]:
        facts = {"status": "ok", "reloaded_at": self._reloaded_at}
        if self._note:
            facts["note"] = self._note
        return facts | {"status": "degraded", "reason": self._problem} if self._problem else facts

    async def _take(self, built: Built) -> None:
        """Start a new snapshot, swap, and retire the old one in the background.

        The old one gives up nothing before the new one runs: where that fails, it serves on whole.
        """
        before = self.built
        await built.services.start()
        try:
            built.policies.adopt(before.policies)
            if not built.governor.adopt(before.governor):  # else it counts on
                await built.governor.start()
        except BaseException:
            await built.services.close()
            raise
        built.engine.adopt(before.engine)
        self._equip(built)
        self.built = built
        self.gateway.swap(built.services)
        self._retiring = {task: old for task, old in self._retiring.items() if not task.done()}
        self._retiring[asyncio.create_task(self._retire(before))] = before

    async def _retire(self, before: Built) -> None:
        await before.services.until_idle()
        await before.services.close()
        if before.cache is not None and before.cache is not self.built.cache:
            await before.cache.close()
        await before.governor.close()

    def _equip(self, built: Built) -> None:
        """Give a snapshot what its parts need of this process."""
        built.governor.on_read = self._to_keep.set
        self.telemetry.meter.know(built.policies.names)
        services = built.services
        services.health = self.health
        services.metrics = self.telemetry.render
        services.remember = self._remember if self.config.ledger is not None else None
        services.recall = self._recall if self.config.ledger is not None else None

    async def _remember(self, client: Client, body: bytes) -> dict[str, Any]:
        """Keep a judgement of a decision that this client's key made. Raises ApiError 400, 404."""
        assert self.ledger is not None and self.reader is not None
        try:
            given = orjson.loads(body)
        except orjson.JSONDecodeError:
            given = None
        feedback = parse_feedback(given, key_id=client.key_id, models=self.built.pool.names)
        look = partial(self.read, owner_of, self.ledger, self.reader, feedback.decision_id)
        owner = await self._look_twice(feedback.decision_id, look)
        if owner is None or owner != client.key_id:
            raise unknown_decision(feedback.decision_id)
        self.ledger.append_feedback(feedback)
        return {"id": feedback.feedback_id, "object": "feedback", "reward": feedback.reward}

    async def _recall(self, client: Client, decision_id: str) -> dict[str, Any] | None:
        entry = await self._look_twice(decision_id, partial(self.entry, decision_id))
        return None if entry is None or entry["key_id"] != client.key_id else entry

    async def _look_twice(
        self, decision_id: str, look: Callable[[], Awaitable[T | None]]
    ) -> T | None:
        """Look again, once, when another worker must have written what is not there yet."""
        assert self.ledger is not None
        found = await look()
        if found is None and is_decision(decision_id):
            flush_s = self.ledger.settings.flush_ms / 1000
            await asyncio.sleep(min(flush_s + _COMMIT_S, _LONGEST_WAIT_S))
            found = await look()
        return found

    async def entry(self, decision_id: str) -> dict[str, Any] | None:
        """Return a call as the ledger has it, as plain data with its judgements."""
        assert self.reader is not None
        entry = await self.read(self.reader.get, decision_id)
        if entry is None:
            return None
        facts = asdict(entry.record)
        del facts["features"]
        return facts | {"feedback": [asdict(given) for given in entry.feedback]}

    async def read(self, ask: Callable[..., T], *given: Any) -> T:
        """Ask the ledger's reader, off the event loop; it serves one thread."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, ask, *given)

    async def _follow(self, every_s: float) -> None:
        """Reload when a file of the configuration changes, once it has stopped changing."""
        known = self._marks
        while True:
            await asyncio.sleep(every_s)
            seen = await asyncio.to_thread(self._look, self.config)
            if seen == known:
                continue
            known = seen
            with suppress(CrossroadsError):  # logged, and shown by health
                await self.reload()
                known = self._marks

    def _look(self, config: ServeConfig) -> tuple[Mark, ...]:
        return self._own_mark() + marks_of(config)

    def _own_mark(self) -> tuple[Mark, ...]:
        return () if self.path is None else marked([self.path])

    def _read_anew(self) -> tuple[ServeConfig, tuple[Mark, ...]]:
        """Return the configuration, and the marks of its files from before they were read."""
        own = self._own_mark()
        config = self.config if self._read is None else self._read()
        return config, own + marks_of(config)


def _secrets(config: ServeConfig) -> list[str]:
    """Return the texts of the configuration that no log may show."""
    admin = config.admin.token if config.admin is not None else None
    keys = [key.secret for key in config.governance.keys]
    return [secret for secret in (config.api_key, admin, *keys) if secret]
