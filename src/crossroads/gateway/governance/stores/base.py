"""What a worker tells a store and what it hears, and the arithmetic in between.

A worker holds units of an account on lease. With every exchange it reports what it used for good,
gives back what it does not need, and takes what it needs. The store takes leased units off the
account at once, so the sum of all leases and all use never exceeds the limit; what a worker used
beyond its lease (a call that cost more than was reserved for it) is taken off as well and leaves a
debt. The lease of a worker that was not heard of for its time to live returns to the account.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from crossroads.gateway.governance.accounts import MS_PER_S, Account, Balance, Bucket, block_of

_SLACK_MS = 1_000  # between a worker's measure of time and the store's


class StoreError(Exception):
    """The store cannot be reached or does not answer."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One account's part of an exchange.

    Attributes
    ----------
    account : what is asked of
    seq : of this report, rising; a report that was sent twice counts once
    used, give, calls : units used for good, units given back, calls settled since the last report
    need, block : units that are waited for, and a block to take beyond
    since_ms : since this worker's last exchange on the account, by its monotonic clock; -1: never.
        No more time than that can have passed, whatever the store's own clock says.
    """

    account: Account
    seq: int = 0
    used: int = 0
    give: int = 0
    calls: int = 0
    need: int = 0
    block: int = 0
    since_ms: int = -1


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an ``Ask``.

    Attributes
    ----------
    held : units this worker has on lease now
    free : units that nobody has; below 0 for a debt
    spent : of a balance, units used or on lease
    leased : units all workers have on lease
    calls : settled by all workers
    """

    held: int
    free: int
    spent: int
    leased: int
    calls: int


class Store(Protocol):
    """Shared counts. Every method but ``close`` raises StoreError where the store is gone."""

    async def exchange(self, worker: str, ttl_ms: int, asks: Sequence[Ask]) -> list[Answer]:
        """Report, give, take: all accounts at once. Also says that the worker lives."""
        ...

    async def read(self, name: str) -> bytes | None:
        """Return a document."""
        ...

    async def swap(self, name: str, old: bytes | None, new: bytes) -> bool:
        """Write a document where it still is ``old``; False where it is not."""
        ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class Lease:
    units: int = 0
    seq: int = 0


@dataclass(slots=True)
class Entry:
    """An account as a store keeps it.

    Attributes
    ----------
    state : bucket or balance, in ticks of a millisecond
    calls : settled
    leases : by worker
    """

    state: Bucket | Balance
    calls: int = 0
    leases: dict[str, Lease] = field(default_factory=dict)


def new_entry(account: Account, now_ms: int, level: int | None = None, last: int = 0) -> Entry:
    """Return an entry: a new one, or one with the level that was kept (a balance: units spent)."""
    if account.period_s == 0:
        return Entry(Balance(account.limit, level or 0))
    period = account.period_s * MS_PER_S
    return Entry(Bucket(account.limit, period, now_ms if level is None else last, level))


def exchange(
    entry: Entry, ask: Ask, worker: str, now_ms: int, is_alive: Callable[[str], bool]
) -> Answer:
    """Apply one ask to one entry. ``is_alive`` tells of the other workers."""
    state = entry.state
    if isinstance(state, Bucket) and ask.since_ms >= 0:
        state.last = max(state.last, now_ms - ask.since_ms - _SLACK_MS)
    for other in [name for name in entry.leases if name != worker and not is_alive(name)]:
        state.give(entry.leases.pop(other).units, now_ms)
    lease = entry.leases.setdefault(worker, Lease())
    if ask.seq > lease.seq:
        lease.seq = ask.seq
        entry.calls += ask.calls
        state.give(ask.give, now_ms)
        lease.units -= ask.used + ask.give
        if lease.units < 0:
            state.give(lease.units, now_ms)
            lease.units = 0
    granted = block_of(ask.need, ask.block, state.free(now_ms))
    state.give(-granted, now_ms)
    lease.units += granted
    return Answer(
        held=lease.units,
        free=state.free(now_ms),
        spent=state.spent if isinstance(state, Balance) else 0,
        leased=sum(held.units for held in entry.leases.values()),
        calls=entry.calls,
    )
