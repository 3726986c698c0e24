"""Periods of a budget, and clocks that a jump of the wall clock does not fool."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

_DAY = timedelta(days=1)
_LENGTHS = {"hour": timedelta(hours=1), "day": _DAY, "week": timedelta(weeks=1)}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
_MOST_DAYS = 3660

_BELIEVED_AFTER_S = 60.0  # a step of the wall clock that lasts is a correction, or a resume
_STEP_S = 1.0  # smaller differences are drift, followed at once


def parse_period(text: str) -> timedelta | None:
    """Return the length of ``hour``, ``day``, ``week`` or ``30d``; None for ``month``.

    Raises ValueError naming what is known.
    """
    if text == "month":
        return None
    if text in _LENGTHS:
        return _LENGTHS[text]
    found = re.fullmatch(r"([0-9]{1,4})d", text)
    if found and 1 <= int(found.group(1)) <= _MOST_DAYS:
        return int(found.group(1)) * _DAY
    raise ValueError(f"expected hour, day, week, month or days such as 30d, got {text!r}")


def period_of(text: str, at: float) -> tuple[float, float]:
    """Return start and end, in Unix seconds, of the period that holds the time ``at``.

    Hours, days, weeks (from Monday) and months are those of the UTC calendar; ``30d`` counts whole
    periods from 1 January 1970.
    """
    length = parse_period(text)
    moment = _EPOCH + timedelta(seconds=at)
    if length is None:
        start = datetime(moment.year, moment.month, 1, tzinfo=UTC)
        end = datetime(moment.year + moment.month // 12, moment.month % 12 + 1, 1, tzinfo=UTC)
    else:
        origin = _MONDAY if text == "week" else _EPOCH
        start = origin + (moment - origin) // length * length
        end = start + length
    return start.timestamp(), end.timestamp()


def elapsed_share(
    start: float, end: float, at: float, traffic: Sequence[float] | None = None
) -> float:
    """Return the share of a period's expected traffic that has come by the time ``at``.

    ``traffic`` holds 24 weights, one an hour of the UTC day; without it time itself is the measure.
    """
    at = min(max(at, start), end)
    if traffic is None:
        return (at - start) / (end - start)
    whole = _weight(start, end, traffic)
    return _weight(start, at, traffic) / whole if whole > 0 else (at - start) / (end - start)


def _weight(start: float, end: float, traffic: Sequence[float]) -> float:
    """Return the integral of the hourly weights, in weight times hours."""
    days = int((end - start) // 86_400)
    total = days * sum(traffic)
    at = start + days * 86_400
    while at < end:
        until = min((at // 3600 + 1) * 3600, end)
        total += traffic[int(at // 3600) % 24] * (until - at) / 3600
        at = until
    return total


class SteadyClock:
    """Unix time that moves with the monotonic clock.

    A step of the wall clock is followed only once it has lasted a minute: a jump forth and back
    changes nothing, a correction or a resumed machine is believed soon. ``watch`` looks for steps
    and is called every second or so; ``to_monotonic`` and ``now`` are cheap.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._offset = wall() - monotonic()
        self._stepped_at: float | None = None

    def now(self) -> float:
        return self._monotonic() + self._offset

    def to_monotonic(self, at: float) -> float:
        """Return the ``time.monotonic`` at which it will be ``at``."""
        return at - self._offset

    def watch(self) -> bool:
        """Follow the wall clock where that is safe; True when a step was believed."""
        monotonic = self._monotonic()
        offset = self._wall() - monotonic
        if abs(offset - self._offset) < _STEP_S:
            self._offset, self._stepped_at = offset, None
            return False
        if self._stepped_at is None:
            self._stepped_at = monotonic
        if monotonic - self._stepped_at < _BELIEVED_AFTER_S:
            return False
        self._offset, self._stepped_at = offset, None
        return True
