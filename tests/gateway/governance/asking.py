"""Calls, keys and workers for the tests of governance."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from crossroads.gateway.call import Call, Dialect
from crossroads.gateway.contracts import Grant
from crossroads.gateway.errors import ApiError
from crossroads.gateway.governance import GovernanceSettings, KeyGovernor, SteadyClock
from crossroads.gateway.governance.stores import Answer, Ask, StoreError
from crossroads.gateway.governance.stores.base import Entry, exchange, new_entry

SECRET = "a-secret-of-the-tests"
HEADERS = {b"authorization": f"Bearer {SECRET}".encode()}


class FakeTime:
    """A wall clock and a monotonic clock that move when told."""

    def __init__(self, at: float = 1_800_000_000.0) -> None:
        self.wall, self.monotonic = at, 1_000.0

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    def clock(self) -> SteadyClock:
        return SteadyClock(lambda: self.wall, lambda: self.monotonic)


def settings(
    *,
    limits: dict[str, int] | None = None,
    budgets: Sequence[dict[str, Any]] = (),
    teams: dict[str, Any] | None = None,
    key: dict[str, Any] | None = None,
    **fields: Any,
) -> GovernanceSettings:
    """One key named ``a`` whose secret is ``SECRET``."""
    first: dict[str, Any] = {"name": "a", "secret": SECRET, "limits": limits or {}}
    first |= {"budgets": list(budgets), **(key or {})}
    return GovernanceSettings.model_validate({"keys": [first], "teams": teams or {}, **fields})


def call_of(
    governor: KeyGovernor, *, dialect: Dialect = "chat", model: str = "auto", **body: Any
) -> Call:
    call = Call(dialect=dialect, model=model, body={"messages": [], **body})
    call.client = governor.identify(HEADERS)
    return call


async def granted(governor: KeyGovernor, **body: Any) -> Grant:
    return await governor.admit(call_of(governor, **body))


async def is_granted(governor: KeyGovernor, *, usd: float | None = None) -> bool:
    """Ask for one call, and for money; keep what was granted."""
    try:
        grant = await granted(governor)
        if usd is not None:
            await grant.reserve(usd)
    except ApiError as error:
        assert error.status == 429
        return False
    return True


class Worker:
    """A process of its own with a governor, told what to do line by line; see ``worker.py``."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.gateway.governance.worker", json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def ask(self, **order: Any) -> dict[str, Any]:
        self.tell(**order)
        return self.hear()

    def kill(self) -> None:
        self.process.kill()
        self._end()

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=10)
        self._end()

    def _end(self) -> None:
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()


class FakeStore:
    """A store in this process, by the same arithmetic, that fails when told.

    ``is_gone`` refuses, ``loses_answers`` does what it is asked but fails to say so; the workers in
    ``dead`` are not heard of any more.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.documents: dict[str, bytes] = {}
        self.dead: set[str] = set()
        self.is_gone = self.loses_answers = False
        self.now_ms = 0
        self.num_exchanges = 0

    async def exchange(self, worker: str, ttl_ms: int, asks: Sequence[Ask]) -> list[Answer]:
        self._check()
        self.num_exchanges += 1
        answers = []
        for ask in asks:
            entry = self.entries.setdefault(ask.account.name, new_entry(ask.account, self.now_ms))
            entry.state.limit = ask.account.limit
            alive = {w for e in self.entries.values() for w in e.leases} - self.dead
            answers.append(exchange(entry, ask, worker, self.now_ms, alive.__contains__))
        if self.loses_answers:
            raise StoreError("the answer was lost")
        return answers

    async def read(self, name: str) -> bytes | None:
        self._check()
        return self.documents.get(name)

    async def swap(self, name: str, old: bytes | None, new: bytes) -> bool:
        self._check()
        if self.documents.get(name) != old:
            return False
        self.documents[name] = new
        return True

    async def close(self) -> None:
        pass

    def _check(self) -> None:
        if self.is_gone:
            raise StoreError("gone")
