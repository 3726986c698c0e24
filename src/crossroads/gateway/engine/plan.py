"""Whom a call asks, in order, and within what bounds."""

from __future__ import annotations

from collections.abc import Sequence

from crossroads.gateway.call import Call
from crossroads.gateway.contracts import JUDGED, Attempt, Tally
from crossroads.gateway.engine.breaker import FORCED
from crossroads.gateway.engine.faults import fail, is_overflow, remedy
from crossroads.gateway.engine.fleet import Fleet, Stop
from crossroads.gateway.engine.health import Try
from crossroads.prompts.experts.base import ExpertError

_RESTING = frozenset({429, 503})  # statuses whose Retry-After speaks for all calls to the model


class Plan:
    """The models of one call, one after the other, each with its retries.

    Raises ExpertError where no model may be asked, or may not be any more.

    Parameters
    ----------
    fleet : the models there are
    call, tally : what is asked, and what becomes of it
    stops : models that can serve the call, in the order of preference
    deadline : on the fleet's clock
    is_continuation : the request was changed by us, so a model's refusal is not the client's fault
    num_reserved : attempts to leave to another plan of the call
    """

    __slots__ = (
        *("_at", "_deadline", "_fleet", "_is_continuation", "_is_forced", "_most", "_retries"),
        *("_stops", "_ticket", "call", "stop", "tally"),
    )
    stop: Stop

    def __init__(
        self,
        fleet: Fleet,
        call: Call,
        tally: Tally,
        stops: Sequence[Stop],
        deadline: float,
        *,
        is_continuation: bool = False,
        num_reserved: int = 0,
    ) -> None:
        self.call = call
        self.tally = tally
        self._fleet = fleet
        self._stops = stops
        self._deadline = deadline
        self._is_continuation = is_continuation
        self._is_forced = False
        self._at = 0  # index of the next stop
        self._most = max(1, fleet.settings.max_attempts - num_reserved)
        if tally.attempts and not self.has_attempts_left:
            raise ExpertError("the time or the attempts of the call are used up", status=504)
        if not self._go_on():
            self._force()

    @property
    def deadline(self) -> float:
        return self._deadline

    @property
    def has_attempts_left(self) -> bool:
        """Whether the bounds on attempts and on time allow another one."""
        return self._num_attempts < self._most and self._fleet.clock() < self._deadline

    @property
    def _num_attempts(self) -> int:
        """Attempts to answer: a model that judges an answer uses up none."""
        return sum(attempt.code != JUDGED for attempt in self.tally.attempts)

    def begin(self) -> Try:
        """Begin the attempt at the current stop."""
        return self._begin(self.stop.model, self._ticket)

    def begin_hedge(self) -> tuple[Stop, Try] | None:
        """Begin an attempt at the next stop, beside the running one; None where none is left."""
        if self._num_attempts >= self._most:
            return None
        while self._at < len(self._stops):
            stop = self._stops[self._at]
            self._at += 1
            ticket = self._fleet.health[stop.model].breaker.enter()
            if ticket is not None:
                return stop, self._begin(stop.model, ticket)
        return None

    async def advance(self, error: ExpertError) -> None:
        """Turn to the next attempt after a failure, and wait as long as it takes to be due.

        Raises the error for the client when nothing is left to try.
        """
        what = remedy(error)
        if what == "refuse" and not self._is_continuation:
            self._keep_larger_contexts(error)
        attempts = self.tally.attempts
        if not self.has_attempts_left:
            fail(attempts, error)
        if self._translates():
            return
        if what == "retry" and await self._retries_here(error):
            return
        if not self._go_on():
            fail(attempts, error)

    def rest_s(self, error: ExpertError) -> float:
        """Return the seconds for which nobody should ask the model: a Retry-After too long."""
        asked = error.retry_after or 0.0
        too_long = asked > self._fleet.settings.max_retry_after_s
        return asked if too_long and error.status in _RESTING else 0.0

    def _begin(self, model: str, ticket: int) -> Try:
        attempt = Attempt(model)
        self.tally.attempts.append(attempt)
        return Try(attempt, self._fleet.health[model], ticket, self._fleet.clock)

    def _go_on(self) -> bool:
        """Enter the next stop whose breaker lets us in; False when none is left."""
        while self._at < len(self._stops):
            stop = self._stops[self._at]
            self._at += 1
            if self._enter(stop):
                self._retries = self._fleet.settings.retries
                return True
            self.tally.skipped += (stop.model,)
        return False

    def _enter(self, stop: Stop) -> bool:
        breaker = self._fleet.health[stop.model].breaker
        ticket = breaker.enter()
        if ticket is None:
            if not self._is_forced or breaker.is_resting:
                return False
            ticket = FORCED
        self.stop = stop
        self._ticket = ticket
        return True

    def _force(self) -> None:
        """Every breaker is open: ask all the same but those that asked for rest, or say so."""
        if not self._stops:
            raise ExpertError(
                f"no model of this choice answers requests of the API {self.call.dialect!r}",
                status=400,
                type="invalid_request_error",
                code="unsupported_by_models",
            )
        names = [stop.model for stop in self._stops]
        breakers = [self._fleet.health[name].breaker for name in names]
        is_refusing = self._fleet.settings.when_all_open == "refuse"
        if is_refusing or all(breaker.is_resting for breaker in breakers):
            wait = min(breaker.opens_for for breaker in breakers)
            raise ExpertError(
                f"all models of this choice failed lately or asked for rest ({', '.join(names)}); "
                "try again later",
                status=503,
                code="breaker_open",
                retry_after=max(1.0, wait),
            )
        self._is_forced = True
        self._at = 0
        self.tally.skipped = self.tally.skipped[: -len(self._stops)]
        self._go_on()

    async def _retries_here(self, error: ExpertError) -> bool:
        """Wait, and enter the same model again; False where that is not to be."""
        settings = self._fleet.settings
        if self._retries <= 0:
            return False
        num_done = settings.retries - self._retries
        most = min(settings.backoff_max_s, settings.backoff_s * 2.0**num_done)
        wait = self._fleet.rng.random() * most  # full jitter: callers that failed together part
        if error.retry_after is not None:
            if error.retry_after > settings.max_retry_after_s:
                return False
            wait += error.retry_after
        breaker = self._fleet.health[self.stop.model].breaker
        # Also of a call that was forced: retries would double the load on a model that is down.
        if not breaker.may_enter() or self._fleet.clock() + wait >= self._deadline:
            return False
        self._retries -= 1
        began = self._fleet.clock()
        try:
            await self._fleet.sleep(wait)
        finally:  # the wait is the model's doing, not ours
            self.call.phases.upstream += self._fleet.clock() - began
        return self._enter(self.stop)

    def _translates(self) -> bool:
        """Enter the same model in ``chat``, where it turned out to lack the API it was asked in."""
        if self._is_continuation:  # what was sent is no longer the client's own request
            return False
        stop = self._fleet.translated(self.call, self.stop, self._deadline)
        return stop is not None and self._enter(stop)

    def _keep_larger_contexts(self, error: ExpertError) -> None:
        """Leave only models that take a longer prompt, if that is what was wrong; else raise."""
        contexts = self._fleet.contexts
        given = contexts.get(self.stop.model, 0)
        if self._fleet.settings.larger_context and given and is_overflow(error):
            rest = self._stops[self._at :]
            self._stops = [stop for stop in rest if contexts.get(stop.model, 0) > given]
            self._at = 0
            return
        raise error
