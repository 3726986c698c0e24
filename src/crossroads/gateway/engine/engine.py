"""Gets an answer out of the models of a choice, whatever happens to one of them."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from crossroads.gateway.call import Body, Call, Dialect, Event
from crossroads.gateway.contracts import (
    CANCELLED,
    JUDGED,
    NO_API,
    Attempt,
    Check,
    Choice,
    Tally,
    Upstream,
    Usage,
)
from crossroads.gateway.engine.answers import estimate, read_answer, spent, tokens_of
from crossroads.gateway.engine.breaker import Clock
from crossroads.gateway.engine.faults import fail, remedy
from crossroads.gateway.engine.fleet import Fleet, Sleep, Stop
from crossroads.gateway.engine.health import Try
from crossroads.gateway.engine.hedge import race
from crossroads.gateway.engine.plan import Plan
from crossroads.gateway.engine.readers import reader_of
from crossroads.gateway.engine.relay import Opened, Relay
from crossroads.gateway.engine.settings import EngineSettings
from crossroads.gateway.vocabulary import SpentError, chat_usage, usage_of
from crossroads.prompts.experts.base import ExpertError, chunks_of

T = TypeVar("T")

logger = logging.getLogger(__name__)

_UNEXPECTED = "model %r failed unexpectedly"


class Answered(NamedTuple):
    """A whole answer, and what it says."""

    model: str
    dialect: Dialect
    body: Body
    text: str
    finish: str | None
    usage: Usage
    attempt: Try


class Engine:
    """Retries, falls back, hedges, verifies, and continues broken streams.

    Raises InputError where the settings name a model that does not exist.

    Parameters
    ----------
    upstreams : by model name, started
    settings : how hard to try
    prefills : names of models that continue a last message of the assistant
    contexts : tokens each model takes, where known; for ``larger_context``
    clock : monotonic seconds, the same as ``Order.deadline`` is on
    sleep : waits between attempts
    rng : source of jitter
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        settings: EngineSettings | None = None,
        *,
        prefills: Collection[str] = (),
        contexts: Mapping[str, int] | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = settings or EngineSettings()
        self._fleet = Fleet(
            upstreams,
            self._settings,
            prefills=prefills,
            contexts=contexts,
            clock=clock,
            sleep=sleep,
            rng=rng,
        )
        self._upstreams = self._fleet.upstreams
        self._deadline_s = self._settings.deadline_s
        self._hedge_after_s = self._settings.hedge.after_s
        self._clock = clock

    def adopt(self, old: Engine) -> None:
        """Take over breakers and statistics of the models ``old`` has, too: after a reload."""
        self._fleet.adopt(old._fleet)

    def health(self) -> dict[str, dict[str, Any]]:
        """Return by model, as plain data, how it is doing; durations in seconds.

        ``state`` (``closed``, ``open``, ``half_open``), ``state_for_s``, ``opens_for_s`` (until the
        next probe), ``waits_for_probe`` (the next call is one: nobody asked since), ``num_recent``
        calls in the window and the ``failure_share`` of them, ``num_failed_in_row``,
        ``in_flight``, ``num_calls``, ``num_failures``, ``answer_s`` and ``first_event_s`` (moving
        averages; None before the first), ``last_error`` and ``last_error_time`` (Unix seconds).
        """
        now = self._clock()
        return {name: health.snapshot(now) for name, health in self._fleet.health.items()}

    async def complete(self, call: Call, choice: Choice, tally: Tally) -> Body:
        """Return the whole answer in ``tally.dialect``. Raises ExpertError when all failed."""
        if choice.check is not None and call.dialect != "embeddings":
            return _deliver(await self._cascade(call, choice, tally), tally)
        plan = self._plan(call, tally, (choice.model, *choice.fallbacks))
        return _deliver(await self._answer(plan, self._hedge_s(choice)), tally)

    def stream(self, call: Call, choice: Choice, tally: Tally) -> AsyncGenerator[list[Event], None]:
        """Yield batches of events in ``tally.dialect``; ending normally means the answer is whole.

        Raises ExpertError, after the first batch where the answer broke and nobody could go on.
        """
        if choice.check is not None:
            return self._cascade_stream(call, choice, tally)
        names = (choice.model, *choice.fallbacks)
        return self._relay(call, tally, names, self._hedge_s(choice))

    # --- whole answers ---------------------------------------------------------------------------

    async def _answer(self, plan: Plan, hedge_s: float | None = None) -> Answered:
        while True:
            try:
                if hedge_s is None:
                    return await self._ask(plan, plan.stop, plan.begin())
                return await self._race(plan, hedge_s, self._ask, _drop)
            except ExpertError as error:
                await plan.advance(error)

    async def _ask(self, plan: Plan, stop: Stop, attempt: Try) -> Answered:
        dialect = stop.order.dialect
        try:
            answer = await self._upstreams[stop.model].complete(stop.order)
            facts = read_answer(dialect, answer)
        except ExpertError as error:
            self._note(plan, stop, attempt, error)
            raise
        except Exception as error:
            logger.exception(_UNEXPECTED, stop.model)
            failure = _failed(stop.model)
            attempt.fail(failure)
            raise failure from error
        except BaseException:
            _give_up(plan, stop, attempt)
            raise
        if facts is None:
            told = usage_of(dialect, answer.get("usage")) if isinstance(answer, dict) else None
            raise _empty(stop.model, attempt, told or estimate(plan.call, 0))
        usage = facts.usage or estimate(plan.call, facts.size)
        attempt.succeed(usage)
        return Answered(stop.model, dialect, answer, facts.text, facts.finish, usage, attempt)

    # --- streams ---------------------------------------------------------------------------------

    async def _relay(
        self,
        call: Call,
        tally: Tally,
        names: tuple[str, ...],
        hedge_s: float | None = None,
        deadline: float | None = None,
    ) -> AsyncGenerator[list[Event], None]:
        plan = self._plan(call, tally, names, deadline)
        opened = await self._open(plan, hedge_s)
        relay = Relay(self._fleet, plan, opened, names)
        try:
            while True:
                events = opened.events
                try:
                    batch = relay.feed(opened.batch)
                    if batch:
                        yield batch
                    async for arrived in events:
                        batch = relay.feed(arrived)
                        if batch:
                            yield batch
                    relay.end()
                    return
                except ExpertError as error:
                    failure = error
                except Exception:
                    logger.exception(_UNEXPECTED, opened.stop.model)
                    failure = _failed(opened.stop.model)
                finally:
                    await events.aclose()
                opened = await self._continue(relay.continuation(failure), failure)
                relay.go_on(opened)
        except BaseException:
            relay.give_up()
            raise
        finally:
            relay.close()

    async def _open(self, plan: Plan, hedge_s: float | None = None) -> Opened:
        while True:
            try:
                if hedge_s is None:
                    return await self._begin(plan, plan.stop, plan.begin())
                return await self._race(plan, hedge_s, self._begin, _abandon)
            except ExpertError as error:
                await plan.advance(error)

    async def _continue(self, plan: Plan, failure: ExpertError) -> Opened:
        """Have another model go on; where none does, what broke the answer is the error."""
        try:
            return await self._open(plan)
        except ExpertError:
            fail(plan.tally.attempts, failure)

    async def _begin(self, plan: Plan, stop: Stop, attempt: Try) -> Opened:
        """Wait for the first events: until then a failure can be hidden from the client."""
        events = self._upstreams[stop.model].stream(stop.order)
        try:
            batch = await anext(events, None)
            while batch is not None and not batch:
                batch = await anext(events, None)
        except ExpertError as error:
            self._note(plan, stop, attempt, error)
            raise
        except Exception as error:
            logger.exception(_UNEXPECTED, stop.model)
            failure = _failed(stop.model)
            attempt.fail(failure)
            raise failure from error
        except BaseException:
            _give_up(plan, stop, attempt)
            raise
        if batch is None:
            raise _empty(stop.model, attempt, estimate(plan.call, 0))
        attempt.first_event()
        return Opened(stop, attempt, events, batch)

    # --- cascades --------------------------------------------------------------------------------

    async def _cascade(self, call: Call, choice: Choice, tally: Tally) -> Answered:
        deadline = self._clock() + self._deadline_s
        answered = await self._verified(call, choice, tally, deadline)
        if not choice.escalate_to or (answered is not None and _is_accepted(tally)):
            assert answered is not None
            return answered
        try:
            return await self._answer(self._plan(call, tally, choice.escalate_to, deadline))
        except ExpertError as error:
            return self._refused_after_all(answered, tally, error)

    async def _cascade_stream(
        self, call: Call, choice: Choice, tally: Tally
    ) -> AsyncGenerator[list[Event], None]:
        deadline = self._clock() + self._deadline_s
        answered = await self._verified(call, choice, tally, deadline)
        if answered is None or (choice.escalate_to and not _is_accepted(tally)):
            has_begun = False
            stronger = self._relay(call, tally, choice.escalate_to, deadline=deadline)
            try:
                async with aclosing(stronger) as batches:
                    async for batch in batches:
                        has_begun = True
                        yield batch
                return
            except ExpertError as error:
                if has_begun:
                    raise
                answered = self._refused_after_all(answered, tally, error)
        answer = _deliver(answered, tally)
        call.phases.first_token = call.phases.total
        yield list(chunks_of(answer, include_usage=bool(answer.get("usage"))))

    async def _verified(
        self, call: Call, choice: Choice, tally: Tally, deadline: float
    ) -> Answered | None:
        """Return the first model's answer, its verdict in the tally; None where it has none."""
        names = (choice.model, *choice.fallbacks)
        try:
            num_reserved = 1 if choice.escalate_to else 0
            # In the dialect that verifiers read.
            plan = self._plan(call, tally, names, deadline, only="chat", num_reserved=num_reserved)
            answered = await self._answer(plan, self._hedge_s(choice))
        except ExpertError as error:
            if not choice.escalate_to or remedy(error) == "refuse":
                raise
            tally.verdict = {"accepted": False, "reason": f"There was no answer: {error}"}
            return None
        assert choice.check is not None
        if choice.escalate_to:  # whoever is asked after a refusal needs time, too
            deadline = (self._clock() + deadline) / 2
        tally.verdict = await self._judge(choice.check, call, answered, deadline)
        _bill_judge(call, tally, answered)
        return answered

    async def _judge(
        self, check: Check, call: Call, answered: Answered, deadline: float
    ) -> Mapping[str, Any]:
        """Return the verdict. A verifier that fails, is late or says nothing accepts nothing."""
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock())):
                verdict = await check.accepts(call, answered.model, answered.body)
        except ExpertError as error:
            is_billed = isinstance(error, SpentError)
            return _not_accepted(str(error), check.most(call) if is_billed else None)
        except TimeoutError:
            return _not_accepted("there was no verdict in time", check.most(call))
        except Exception as error:
            logger.exception("the check of an answer of model %r failed", answered.model)
            return _not_accepted(f"{type(error).__name__}; the log says why")
        if not isinstance(verdict, Mapping):
            logger.error("the check of an answer of model %r gave no verdict", answered.model)
            return _not_accepted("it gave no verdict")
        return verdict

    def _refused_after_all(
        self, answered: Answered | None, tally: Tally, error: ExpertError
    ) -> Answered:
        """Nobody else could answer: give what the verifier refused, and say so, or raise."""
        if answered is None or not self._settings.give_refused:
            raise error
        tally.verdict = {**(tally.verdict or {}), "escalation_failed": str(error)}
        return answered

    # --- both ------------------------------------------------------------------------------------

    def _plan(
        self,
        call: Call,
        tally: Tally,
        names: Sequence[str],
        deadline: float | None = None,
        *,
        only: Dialect | None = None,
        num_reserved: int = 0,
    ) -> Plan:
        if deadline is None:
            deadline = self._clock() + self._deadline_s
        stops = self._fleet.stops(call, names, deadline, only)
        return Plan(self._fleet, call, tally, stops, deadline, num_reserved=num_reserved)

    def _note(self, plan: Plan, stop: Stop, attempt: Try, error: ExpertError) -> None:
        """Book a failure: against the model, but for an API that its server does not have."""
        if self._fleet.unlearn(stop, error):
            attempt.give_up(NO_API, None)
        else:
            attempt.fail(error, spent(plan.call, error), rest_s=plan.rest_s(error))

    def _hedge_s(self, choice: Choice) -> float | None:
        after_s = choice.hedge_after
        return self._hedge_after_s if after_s is None else after_s

    async def _race(
        self,
        plan: Plan,
        after_s: float,
        ask: Callable[[Plan, Stop, Try], Coroutine[Any, Any, T]],
        discard: Callable[[Plan, T], Awaitable[None]],
    ) -> T:
        """Ask the model that is due, and after ``after_s`` seconds the next one beside it."""
        hedges = self._fleet.hedges
        hedges.earn()

        def second() -> Coroutine[Any, Any, T] | None:
            if not hedges.spend():
                return None
            begun = plan.begin_hedge()
            if begun is None:
                hedges.refund()
                return None
            return ask(plan, *begun)

        first = ask(plan, plan.stop, plan.begin())
        return await race(first, second, after_s=after_s, discard=partial(discard, plan))


def _bill_judge(call: Call, tally: Tally, answered: Answered) -> None:
    """Note the tokens of a model that judged as an attempt of its own: somebody pays for them."""
    verdict = tally.verdict or {}
    judge = verdict.get("judge")
    if not isinstance(judge, str):
        return
    usage = chat_usage(verdict.get("usage"))
    has_said = not verdict.get("failed")
    if usage is None:  # it read the question and the answer, and said a word
        inputs = call.input_tokens + tokens_of(len(answered.text))
        usage = Usage(inputs, int(has_said), True)
    elif verdict.get("usage_estimated"):
        usage = Usage(usage.input_tokens, usage.output_tokens, True)
    tally.attempts.append(Attempt(judge, 200 if has_said else 0, JUDGED, usage=usage))


def _not_accepted(why: str, asked: tuple[str, Usage] | None = None) -> Mapping[str, Any]:
    """Return the verdict of a check that gave none; ``asked``: a model that had the question."""
    verdict = {"accepted": False, "reason": f"The verifier failed: {why}"}
    return verdict if asked is None else {**verdict, "judge": asked[0], "failed": True}


def _deliver(answered: Answered, tally: Tally) -> Body:
    tally.model = answered.model
    tally.dialect = answered.dialect
    tally.text = answered.text
    tally.finish = answered.finish
    tally.usage = answered.usage
    tally.answer = answered.body
    tally.is_complete = True
    return answered.body


def _is_accepted(tally: Tally) -> bool:
    return bool(tally.verdict and tally.verdict.get("accepted"))


def _give_up(plan: Plan, stop: Stop, attempt: Try) -> None:
    """Nobody waits any more. The prompt counts: upstreams bill what they have begun to read."""
    usage = estimate(plan.call, 0)
    attempt.give_up(CANCELLED, usage)
    plan.tally.model = stop.model
    plan.tally.usage = usage


def _failed(model: str) -> ExpertError:
    """Whatever an upstream raises that it should not is its failure, and has another one asked."""
    return ExpertError(
        f"model {model!r} failed unexpectedly; the log says why", code="upstream_failed"
    )


def _empty(model: str, attempt: Try, usage: Usage) -> ExpertError:
    error = ExpertError(f"model {model!r}: the answer was empty", code="upstream_empty")
    attempt.fail(error, usage)
    return error


async def _drop(_: Plan, answered: Answered) -> None:
    """An answer nobody needs is billed as any other."""
    answered.attempt.attempt.code = CANCELLED


async def _abandon(plan: Plan, opened: Opened) -> None:
    """A stream nobody needs is billed for what it gave."""
    await opened.events.aclose()
    reader = reader_of(opened.stop.order.dialect)
    with suppress(AttributeError, KeyError, TypeError):  # nobody checked what it gave
        reader.note(opened.batch)
    opened.attempt.give_up(CANCELLED, reader.usage or estimate(plan.call, reader.size))
