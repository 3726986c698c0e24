"""Whom a call asks while breakers are open."""

from __future__ import annotations

from crossroads.gateway.contracts import Choice
from tests.gateway.engine.running import an_engine, failure_of, run_complete
from tests.gateway.engine.scripted import Scripted, Step, failing


def test_models_with_an_open_breaker_are_skipped() -> None:
    first = Scripted("a", failing(500))
    engine, _ = an_engine(first, Scripted("b"), retries=0, breaker={"consecutive_failures": 2})
    for _ in range(2):
        run_complete(engine)
    _, tally = run_complete(engine)
    assert [attempt.model for attempt in tally.attempts] == ["b"]
    assert len(first.orders) == 2
    assert engine.health()["a"]["state"] == "open"
    assert (tally.skipped, tally.num_fallbacks) == (("a",), 1)


def test_when_all_breakers_are_open_the_models_are_asked_all_the_same() -> None:
    first = Scripted("a", failing(500), Step())
    engine, _ = an_engine(first, retries=0, breaker={"consecutive_failures": 1})
    failure_of(engine, Choice(model="a"))
    assert engine.health()["a"]["state"] == "open"
    _, tally = run_complete(engine, Choice(model="a"))
    assert tally.is_complete
    assert engine.health()["a"]["state"] == "open"  # only probes close it
    assert (tally.skipped, tally.num_fallbacks) == ((), 0)


def test_a_model_whose_breaker_is_open_is_asked_once_a_call() -> None:
    first, second = Scripted("a", failing(500)), Scripted("b", failing(500))
    engine, _ = an_engine(first, second, retries=3, breaker={"consecutive_failures": 1})
    failure_of(engine, Choice(model="a", fallbacks=("b",)))
    num_before = len(first.orders), len(second.orders)
    _, tally = failure_of(engine, Choice(model="a", fallbacks=("b",)))
    assert [attempt.model for attempt in tally.attempts] == ["a", "b"]
    assert (len(first.orders), len(second.orders)) == tuple(n + 1 for n in num_before)


def test_a_call_that_was_forced_moves_no_breaker() -> None:
    engine, fake = an_engine(
        Scripted("a", failing(500)), retries=0, breaker={"consecutive_failures": 1, "jitter": 0}
    )
    failure_of(engine, Choice(model="a"))
    fake.now += 3.0
    failure_of(engine, Choice(model="a"))
    assert engine.health()["a"]["opens_for_s"] == 2.0


def test_a_model_that_asked_for_rest_is_not_asked_even_where_nobody_else_is_left() -> None:
    first = Scripted("a", failing(429, retry_after=30.0), Step())
    engine, fake = an_engine(first, breaker={"jitter": 0})
    failure_of(engine, Choice(model="a"))
    error, tally = failure_of(engine, Choice(model="a"))
    assert (error.status, error.code, error.retry_after) == (503, "breaker_open", 30.0)
    assert (tally.attempts, len(first.orders)) == ([], 1)
    fake.now += 30.0
    _, tally = run_complete(engine, Choice(model="a"))
    assert tally.is_complete


def test_a_resting_model_is_passed_over_for_one_that_only_fails() -> None:
    resting, failed = Scripted("a", failing(429, retry_after=30.0)), Scripted("b", failing(500))
    engine, _ = an_engine(resting, failed, retries=0, breaker={"consecutive_failures": 1})
    failure_of(engine, Choice(model="a", fallbacks=("b",)))
    _, tally = failure_of(engine, Choice(model="a", fallbacks=("b",)))
    assert [attempt.model for attempt in tally.attempts] == ["b"]
    assert tally.skipped == ("a",)


def test_only_refusals_for_load_have_a_model_rest() -> None:
    first = Scripted("a", failing(500, retry_after=30.0))
    engine, _ = an_engine(first, Scripted("b"))
    run_complete(engine)
    assert engine.health()["a"]["state"] == "closed"


def test_when_all_breakers_are_open_the_settings_may_have_it_said() -> None:
    first = Scripted("a", failing(500))
    engine, _ = an_engine(
        first, retries=0, when_all_open="refuse", breaker={"consecutive_failures": 1, "jitter": 0}
    )
    failure_of(engine, Choice(model="a"))
    error, tally = failure_of(engine, Choice(model="a"))
    assert (error.status, error.code, error.retry_after) == (503, "breaker_open", 5.0)
    assert tally.attempts == []
