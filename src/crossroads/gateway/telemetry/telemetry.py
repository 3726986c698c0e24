"""Implements ``contracts.Telemetry``: metrics, logs and traces of one worker."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from crossroads.core.errors import CrossroadsError
from crossroads.gateway.call import Call
from crossroads.gateway.contracts import Record
from crossroads.gateway.telemetry.catalogue import CONTENT_TYPE
from crossroads.gateway.telemetry.lag import LagProbe
from crossroads.gateway.telemetry.logs import Logs
from crossroads.gateway.telemetry.meter import Meter
from crossroads.gateway.telemetry.readings import Source, process_source, read_into
from crossroads.gateway.telemetry.settings import TelemetrySettings
from crossroads.gateway.telemetry.snapshot import Snapshot, merge
from crossroads.gateway.telemetry.workers import SharedSnapshots

logger = logging.getLogger(__name__)


class GatewayTelemetry:
    """Counts, logs and traces calls; `begin` and `end` run on the event loop and never wait.

    Raises InputError where the log file cannot be written, MissingExtraError where ``otel`` is set
    but not installed.

    Parameters
    ----------
    names : models and policies that have series of their own
    directory : shared by the workers of one gateway; None for one worker
    secrets : texts that are never logged
    """

    content_type = CONTENT_TYPE

    def __init__(
        self,
        settings: TelemetrySettings | None = None,
        *,
        names: Iterable[str] = (),
        directory: Path | None = None,
        secrets: Iterable[str] = (),
    ) -> None:
        settings = settings or TelemetrySettings()
        self.meter = Meter(names, max_models=settings.max_models, max_keys=settings.max_keys)
        self.recent: deque[Record] = deque(maxlen=settings.recent)
        self.logs = None if settings.logs is None else Logs(settings.logs, secrets=secrets)
        self._tracer = None
        if settings.otel is not None:
            from crossroads.gateway.telemetry.otel import Tracing

            self._tracer = Tracing(settings.otel)
        self._lag = LagProbe(self.meter.observe_lag, period=settings.lag_ms / 1e3)
        self._sources: list[Source] = [process_source]
        self._problems: list[str] = []
        self._directory = directory
        self._period = settings.snapshot_s
        self._shared: SharedSnapshots | None = None
        self._task: asyncio.Task[None] | None = None

    def watch(self, source: Source) -> None:
        """Add figures that another part keeps; read on the event loop with every snapshot."""
        self._sources.append(source)

    async def start(self) -> None:
        """Begin to probe, write and share. Raises InputError for a directory it cannot write."""
        self._lag.start()
        if self.logs is not None:
            self.logs.start()
        if self._tracer is not None:
            self._tracer.start()
        if self._directory is not None:
            self._shared = await asyncio.to_thread(
                SharedSnapshots, self._directory, period=self._period
            )
            self._task = asyncio.create_task(self._share(self._shared))

    async def close(self) -> None:
        """Write what is left."""
        self._lag.stop()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._shared is not None:
            try:
                await asyncio.to_thread(self._shared.close, self.snapshot())
            except CrossroadsError as error:
                logger.warning("the last snapshot is lost: %s", error)
        if self.logs is not None:
            await asyncio.to_thread(self.logs.close)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    def begin(self, call: Call) -> None:
        """A call was admitted."""
        self.meter.in_flight += 1
        if self._tracer is not None:
            self._tracer.begin(call)

    def end(self, record: Record) -> None:
        """It is over, well or not."""
        try:
            self.meter.in_flight -= 1
            self.meter.observe(record)
            self.recent.append(record)
            if self.logs is not None:
                self.logs.put(record)
            if self._tracer is not None:
                self._tracer.end(record)
        except Exception:
            # A record nobody foresaw must not cost its client the answer.
            logger.exception("call %s was not reported", record.decision_id)

    def snapshot(self) -> Snapshot:
        """Return this worker's figures."""
        if self.logs is not None:
            self.meter.log_dropped = self.logs.outbox.num_dropped
        snapshot = self.meter.snapshot()
        self._problems = read_into(snapshot, self._sources)
        return snapshot

    async def figures(self) -> Snapshot:
        """Return the figures of all workers."""
        own = self.snapshot()
        if self._shared is None:
            return own
        return merge((own, await asyncio.to_thread(self._shared.others)))

    async def render(self) -> bytes:
        """Return the figures of all workers in Prometheus' text format (``content_type``)."""
        from crossroads.gateway.telemetry import exposition

        figures = await self.figures()
        return await asyncio.to_thread(exposition.render, figures)

    def health(self) -> dict[str, Any]:
        """Return plain data; degraded where lines are lost or a source of figures is broken."""
        facts: dict[str, Any] = {
            "status": "ok",
            "in_flight": self.meter.in_flight,
            "loop_lag_worst_ms": round(self._lag.worst_ms, 3),
        }
        problems = list(self._problems)
        if self.logs is not None:
            facts["logs_dropped"] = self.logs.outbox.num_dropped
            if self.logs.outbox.error:
                problems.append(f"logs: {self.logs.outbox.error}")
        if self._tracer is not None:
            facts["otel_dropped"] = self._tracer.num_dropped
            if self._tracer.problem:
                problems.append(f"otel: {self._tracer.problem}")
        if problems:
            facts |= {"status": "degraded", "reason": "; ".join(problems)}
        return facts

    async def _share(self, shared: SharedSnapshots) -> None:
        problem = ""
        while True:
            try:
                await asyncio.to_thread(shared.write, self.snapshot())
                problem = ""
            except CrossroadsError as error:
                if not problem:
                    logger.warning("figures are not shared with the other workers: %s", error)
                problem = str(error)
            await asyncio.sleep(self._period)
