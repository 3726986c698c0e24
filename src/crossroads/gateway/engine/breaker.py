"""A circuit breaker: stops asking a model that keeps failing, and finds out when it is back.

::

    closed --(failures)--> open --(time is up)--> half_open --(all probes succeed)--> closed
                            ^                        |
                            +----(a probe fails)-----+

Whoever enters gets a ticket and hands it back with the outcome. Outcomes of calls that began before
the last change of state are ignored: they tell of another time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Literal

from crossroads.gateway.engine.settings import BreakerSettings

State = Literal["closed", "open", "half_open"]
Clock = Callable[[], float]

FORCED = -1
"""Ticket of a call that was made although the breaker refused it; its outcome changes nothing."""

_NUM_BUCKETS = 10  # of the sliding window: its edge is sharp to a tenth


class Breaker:
    """The breaker of one model.

    Parameters
    ----------
    settings : when it opens and closes
    clock : monotonic seconds
    rng : varies the time it stays open, so that replicas do not probe in step
    """

    __slots__ = (
        *("_clock", "_epoch", "_failed", "_num_opened", "_num_probes", "_num_proven", "_ok"),
        *("_rests_until", "_rng", "_settings", "_slot", "_streak", "_until", "_width"),
        *("since", "state"),
    )

    def __init__(
        self, settings: BreakerSettings, *, clock: Clock, rng: random.Random | None = None
    ) -> None:
        self._clock = clock
        self._rng = rng or random.Random()
        self._epoch = 0
        self._num_opened = 0  # in a row, without a success between
        self._num_probes = 0  # let in since it is half-open
        self._num_proven = 0  # of these, succeeded
        self._until = 0.0
        self._rests_until = 0.0
        self.state: State = "closed"
        self.since = clock()
        self._settings = settings
        self._clear()

    def configure(self, settings: BreakerSettings) -> None:
        """Go on by other settings; the state stays, the window starts anew if they differ."""
        if settings != self._settings:
            self._settings = settings
            self._clear()

    def may_enter(self) -> bool:
        """Whether ``enter`` would give a ticket now."""
        if self.state == "closed":
            return True
        if self.state == "open":
            return self._clock() >= self._until
        return self._num_probes < self._settings.probes

    def enter(self) -> int | None:
        """Return a ticket for one call, or None: do not ask."""
        if self.state != "closed":
            if not self.may_enter():
                return None
            if self.state == "open":
                self._turn("half_open")
            self._num_probes += 1
        return self._epoch

    def succeed(self, ticket: int) -> None:
        """The model answered."""
        if ticket != self._epoch:
            return
        if self.state == "half_open":
            self._num_proven += 1
            if self._num_proven >= self._settings.probes:
                self._num_opened = 0
                self._clear()
                self._turn("closed")
            return
        self._streak = 0
        self._ok[self._bucket()] += 1

    def fail(self, ticket: int, *, rest_s: float = 0.0) -> None:
        """The model failed; ``rest_s`` is how long it asked to be left alone, if it did."""
        if ticket != self._epoch:
            return
        if self.state == "closed":
            self._streak += 1
            self._failed[self._bucket()] += 1
            if not rest_s and not self._is_broken():
                return
        self._open(rest_s)

    def leave(self, ticket: int) -> None:
        """The call was given up, which tells nothing about the model."""
        if ticket == self._epoch and self.state == "half_open":
            self._num_probes -= 1

    @property
    def num_recent(self) -> int:
        """Calls in the window."""
        self._bucket()
        return sum(self._failed) + sum(self._ok)

    @property
    def failure_share(self) -> float:
        """Failed calls of those in the window, 0 to 1; 0 without any."""
        self._bucket()
        failed = sum(self._failed)
        return failed / (failed + sum(self._ok)) if failed else 0.0

    @property
    def is_resting(self) -> bool:
        """Whether the model asked to be left alone, and the time it named is not over."""
        return self.state == "open" and self._clock() < self._rests_until

    @property
    def opens_for(self) -> float:
        """Seconds until a probe is let in; 0 unless it is open."""
        return max(0.0, self._until - self._clock()) if self.state == "open" else 0.0

    def _is_broken(self) -> bool:
        settings = self._settings
        if self._streak >= settings.consecutive_failures:
            return True
        return (
            self.num_recent >= settings.least_calls and self.failure_share >= settings.failure_share
        )

    def _open(self, rest_s: float) -> None:
        settings = self._settings
        growth = settings.open_growth ** min(self._num_opened, 64)
        spread = settings.jitter * (2 * self._rng.random() - 1)
        # What was asked for is a least: chance only makes it longer.
        seconds = max(rest_s * (1 + abs(spread)), settings.open_s * growth * (1 + spread))
        now = self._clock()
        self._until = now + min(seconds, settings.open_max_s)
        self._rests_until = now + min(rest_s, settings.open_max_s)
        self._num_opened += 1
        self._turn("open")

    def _turn(self, state: State) -> None:
        self.state = state
        self.since = self._clock()
        self._epoch += 1
        self._num_probes = self._num_proven = 0

    def _clear(self) -> None:
        self._width = self._settings.window_s / _NUM_BUCKETS
        self._ok = [0] * _NUM_BUCKETS
        self._failed = [0] * _NUM_BUCKETS
        self._slot = math.floor(self._clock() / self._width)
        self._streak = 0

    def _bucket(self) -> int:
        """Return the index of the current bucket, after clearing those that went out of date."""
        slot = math.floor(self._clock() / self._width)
        if slot != self._slot:
            for old in range(max(self._slot, slot - _NUM_BUCKETS) + 1, slot + 1):
                self._ok[old % _NUM_BUCKETS] = self._failed[old % _NUM_BUCKETS] = 0
            self._slot = slot
        return slot % _NUM_BUCKETS
