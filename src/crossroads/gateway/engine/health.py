"""How the models are doing, as far as the calls to them tell."""

from __future__ import annotations

import time
from typing import Any

from crossroads.gateway.contracts import Attempt, Usage
from crossroads.gateway.engine.breaker import Breaker, Clock
from crossroads.gateway.engine.faults import blame
from crossroads.prompts.experts.base import ExpertError

_WEIGHT = 0.2  # of the newest latency in the moving average


class ModelHealth:
    """What is known of one model: its breaker, its latency, its last error.

    It outlives the configuration: a new engine takes it over from the old one, calls in flight
    included.
    """

    __slots__ = (
        *("answer_s", "breaker", "first_event_s", "in_flight", "last_error", "last_error_time"),
        *("num_calls", "num_failed_in_row", "num_failures"),
    )

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.in_flight = 0
        self.num_calls = 0
        self.num_failures = 0
        self.num_failed_in_row = 0
        self.answer_s: float | None = None
        self.first_event_s: float | None = None
        self.last_error: str | None = None
        self.last_error_time: float | None = None

    def snapshot(self, now: float) -> dict[str, Any]:
        """Return plain data; ``now`` is the breaker's clock. Durations in seconds."""
        breaker = self.breaker
        waits = breaker.state != "closed" and breaker.may_enter()
        return {
            "state": "half_open" if waits else breaker.state,
            "state_for_s": max(0.0, now - breaker.since),
            "opens_for_s": breaker.opens_for,
            "waits_for_probe": waits,
            "failure_share": breaker.failure_share,
            "num_recent": breaker.num_recent,
            "num_failed_in_row": self.num_failed_in_row,
            "in_flight": self.in_flight,
            "num_calls": self.num_calls,
            "num_failures": self.num_failures,
            "answer_s": self.answer_s,
            "first_event_s": self.first_event_s,
            "last_error": self.last_error,
            "last_error_time": self.last_error_time,
        }


class Try:
    """One attempt under way: tells the tally, the breaker and the model's health how it went.

    The first outcome counts; further ones are ignored.
    """

    __slots__ = ("_clock", "_health", "_is_over", "_started", "_ticket", "attempt")

    def __init__(self, attempt: Attempt, health: ModelHealth, ticket: int, clock: Clock) -> None:
        self.attempt = attempt
        self._health = health
        self._ticket = ticket
        self._clock = clock
        self._started = clock()
        self._is_over = False
        health.in_flight += 1
        health.num_calls += 1

    def first_event(self) -> None:
        """The stream began."""
        health = self._health
        health.first_event_s = _average(health.first_event_s, self._clock() - self._started)

    def succeed(self, usage: Usage, *, is_stream: bool = False) -> None:
        """The answer is whole."""
        if self._end(200, "", usage):
            health = self._health
            if not is_stream:
                health.answer_s = _average(health.answer_s, self.attempt.seconds)
            health.num_failed_in_row = 0
            health.breaker.succeed(self._ticket)

    def fail(self, error: ExpertError, usage: Usage | None = None, *, rest_s: float = 0.0) -> None:
        """The model refused or broke; ``usage`` is of what it produced before."""
        if not self._end(error.status, error.code or "", usage):
            return
        health = self._health
        side = blame(error)
        if side == "client":
            health.breaker.succeed(self._ticket)  # the model is alive, and right
            return
        if side == "gateway":
            health.breaker.leave(self._ticket)
            return
        health.num_failures += 1
        health.num_failed_in_row += 1
        health.last_error = str(error)
        health.last_error_time = time.time()
        health.breaker.fail(self._ticket, rest_s=rest_s)

    def give_up(self, code: str, usage: Usage | None) -> None:
        """Nobody waits for it any more."""
        if self._end(0, code, usage):
            self._health.breaker.leave(self._ticket)

    def _end(self, status: int, code: str, usage: Usage | None) -> bool:
        if self._is_over:
            return False
        self._is_over = True
        self._health.in_flight -= 1
        attempt = self.attempt
        attempt.status, attempt.code, attempt.usage = status, code, usage
        attempt.seconds = self._clock() - self._started
        return True


def _average(average: float | None, value: float) -> float:
    return value if average is None else average + _WEIGHT * (value - average)
