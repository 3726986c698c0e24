"""The arithmetic of limits, in whole numbers: token buckets and balances.

A bucket counts in units times ticks: it gains ``limit`` with every tick, a unit costs ``period``,
and it holds at most ``limit * period``. So nothing is ever rounded, and ``limit`` units flow in
``period`` ticks exactly. The caller says what a tick is (nanoseconds here, milliseconds in stores)
and what time it is; a clock that went back neither fills nor empties a bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["requests", "tokens", "parallel", "usd"]

NANO_USD = 1_000_000_000  # money is counted in billionths of a dollar
MS_PER_S = 1_000


@dataclass(frozen=True, slots=True)
class Account:
    """One limit of one key or team.

    Attributes
    ----------
    name : unique; part of the store's key
    kind : what is counted; money in billionths of a dollar
    limit : units a period, or at a time
    period_s : seconds in which a bucket refills; 0 for a balance, which does not
    keep_s : seconds for which a store keeps the account after its last use
    """

    name: str
    kind: Kind
    limit: int
    period_s: int = 0
    keep_s: int = 2 * 86_400


class Bucket:
    """A token bucket: full at first, refilled evenly, ``limit`` units in ``period`` ticks."""

    __slots__ = ("capacity", "last", "level", "limit", "period")

    def __init__(self, limit: int, period: int, now: int, level: int | None = None) -> None:
        self.limit, self.period = limit, period
        self.capacity = limit * period
        self.level = self.capacity if level is None else min(level, self.capacity)
        self.last = now

    def refresh(self, now: int) -> None:
        elapsed = now - self.last
        if elapsed > 0:
            self.level = min(self.capacity, self.level + elapsed * self.limit)
        self.last = now

    def take(self, n: int, now: int) -> bool:
        """Take ``n`` units, or none."""
        self.refresh(now)
        price = n * self.period
        if price > self.level:
            return False
        self.level -= price
        return True

    def give(self, n: int, now: int) -> None:
        """Put ``n`` units back; below 0: take them, even where that leaves a debt."""
        self.refresh(now)
        self.level = min(self.capacity, self.level + n * self.period)

    def free(self, now: int) -> int:
        """Return how many units could be taken; below 0 for a debt."""
        self.refresh(now)
        return self.level // self.period

    def wait(self, n: int, now: int) -> int | None:
        """Return the ticks until ``n`` units can be taken; None for never."""
        if n > self.limit:
            return None
        self.refresh(now)
        return max(0, -(-(n * self.period - self.level) // self.limit))


class Balance:
    """A sum that is spent and not refilled: a budget's period, or calls at a time."""

    __slots__ = ("limit", "spent")

    def __init__(self, limit: int, spent: int = 0) -> None:
        self.limit, self.spent = limit, spent

    def take(self, n: int, now: int) -> bool:
        """Take ``n`` units, or none."""
        if self.spent + n > self.limit:
            return False
        self.spent += n
        return True

    def give(self, n: int, now: int) -> None:
        """Put ``n`` units back; below 0: take them, even beyond the limit."""
        self.spent -= n

    def free(self, now: int) -> int:
        return self.limit - self.spent

    def wait(self, n: int, now: int) -> int | None:
        """Return 0 where ``n`` units can be taken, else None: nobody knows."""
        return 0 if n <= self.limit - self.spent else None


def block_of(need: int, block: int, free: int) -> int:
    """Return how many units a store hands out at a time.

    What is needed where that is there; beyond it no more than a block and an eighth of what is
    left, so that the last units are not spread over workers that do not need them.
    """
    return max(0, min(free, max(need, min(block, free // 8))))
