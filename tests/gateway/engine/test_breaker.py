"""Circuit breakers: when they open, how they close, what they let through."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.engine.breaker import FORCED, Breaker
from crossroads.gateway.engine.settings import BreakerSettings
from tests.gateway.engine.scripted import FakeTime


def a_breaker(**settings: Any) -> tuple[Breaker, FakeTime]:
    fake = FakeTime()
    settings = {"jitter": 0.0, **settings}
    return Breaker(BreakerSettings(**settings), clock=fake, rng=random.Random(1)), fake


def enter(breaker: Breaker) -> int:
    ticket = breaker.enter()
    assert ticket is not None
    return ticket


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.fail(enter(breaker))


def test_it_opens_after_consecutive_failures() -> None:
    breaker, _ = a_breaker(consecutive_failures=3)
    fail(breaker, 2)
    breaker.succeed(enter(breaker))
    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"
    assert breaker.enter() is None


def test_it_opens_on_the_share_of_failures_once_there_are_enough_calls() -> None:
    breaker, _ = a_breaker(failure_share=0.5, least_calls=10, consecutive_failures=100)
    for _ in range(4):
        fail(breaker)
        breaker.succeed(enter(breaker))
    fail(breaker)
    assert breaker.failure_share == pytest.approx(5 / 9)
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"


def test_failures_older_than_the_window_are_forgotten() -> None:
    breaker, fake = a_breaker(
        window_s=10.0, failure_share=0.5, least_calls=4, consecutive_failures=100
    )
    fail(breaker, 3)
    fake.now += 10.0
    assert breaker.failure_share == 0.0
    fail(breaker)
    assert breaker.state == "closed"
    fake.now += 5.0
    assert breaker.failure_share == 1.0


def test_it_lets_probes_in_when_its_time_is_up_and_closes_when_all_succeed() -> None:
    breaker, fake = a_breaker(consecutive_failures=1, open_s=5.0, probes=2)
    fail(breaker)
    assert breaker.opens_for == 5.0
    fake.now += 4.9
    assert not breaker.may_enter()
    fake.now += 0.1
    assert breaker.may_enter()
    first, second = enter(breaker), enter(breaker)
    assert breaker.state == "half_open"
    assert breaker.enter() is None
    breaker.succeed(first)
    assert breaker.enter() is None
    breaker.succeed(second)
    assert breaker.state == "closed"


def test_a_probe_that_is_given_up_makes_room_for_another() -> None:
    breaker, fake = a_breaker(consecutive_failures=1, open_s=5.0, probes=1)
    fail(breaker)
    fake.now += 5.0
    ticket = enter(breaker)
    assert breaker.enter() is None
    breaker.leave(ticket)
    breaker.succeed(enter(breaker))
    assert breaker.state == "closed"


def test_the_time_it_stays_open_grows_with_failed_probes_up_to_a_bound_and_starts_anew() -> None:
    breaker, fake = a_breaker(consecutive_failures=1, open_s=5.0, open_growth=3.0, open_max_s=40.0)
    for expected in (5.0, 15.0, 40.0, 40.0):
        fail(breaker)
        assert breaker.opens_for == expected
        fake.now += expected
    for ticket in [enter(breaker), enter(breaker)]:
        breaker.succeed(ticket)
    fail(breaker)
    assert breaker.opens_for == 5.0


def test_the_time_it_stays_open_varies_by_the_jitter() -> None:
    seen = set()
    for seed in range(50):
        settings = BreakerSettings(consecutive_failures=1, open_s=10.0, jitter=0.2)
        breaker = Breaker(settings, clock=FakeTime(), rng=random.Random(seed))
        fail(breaker)
        seen.add(breaker.opens_for)
    assert len(seen) == 50
    assert 8.0 <= min(seen) < 9.0
    assert 11.0 < max(seen) <= 12.0


def test_outcomes_of_calls_that_began_before_it_opened_change_nothing() -> None:
    breaker, fake = a_breaker(consecutive_failures=1, open_s=5.0, probes=1)
    early = [enter(breaker) for _ in range(3)]
    breaker.fail(early[0])
    breaker.succeed(early[1])
    assert breaker.state == "open"
    fake.now += 5.0
    ticket = enter(breaker)
    breaker.succeed(early[1])
    breaker.fail(early[2])
    breaker.leave(early[2])
    breaker.succeed(FORCED)
    breaker.fail(FORCED)
    assert breaker.state == "half_open"
    assert breaker.enter() is None
    breaker.succeed(ticket)
    assert breaker.state == "closed"


def test_a_model_that_asks_for_rest_gets_it() -> None:
    breaker, _ = a_breaker(consecutive_failures=10, open_s=5.0)
    breaker.fail(enter(breaker), rest_s=30.0)
    assert breaker.opens_for == 30.0


ACTIONS = st.lists(
    st.one_of(
        st.just(("enter", 0.0)),
        st.tuples(st.sampled_from(["succeed", "fail", "leave"]), st.floats(0, 0.999)),
        st.tuples(st.just("pass"), st.floats(0, 20)),
    ),
    max_size=80,
)


@given(ACTIONS, st.integers(1, 4), st.integers(1, 3))
def test_never_more_than_k_probes_are_out_and_none_while_it_is_open(
    actions: list[tuple[str, float]], probes: int, failures: int
) -> None:
    breaker, fake = a_breaker(consecutive_failures=failures, probes=probes, open_s=5.0)
    out: list[tuple[int, str]] = []  # (ticket, state in which it was given)
    for action, value in actions:
        if action == "pass":
            fake.now += value
        elif action == "enter":
            was_open = breaker.state == "open" and breaker.opens_for > 0
            ticket = breaker.enter()
            if ticket is not None:
                assert not was_open
                out.append((ticket, breaker.state))
        elif out:
            ticket, _ = out.pop(int(value * len(out)))
            getattr(breaker, action)(ticket)
        current = [ticket for ticket, state in out if state == "half_open"]
        if breaker.state == "half_open":
            newest = max(current, default=0)
            assert current.count(newest) <= probes
        assert 0.0 <= breaker.failure_share <= 1.0
        if breaker.state != "open":
            assert breaker.opens_for == 0.0


def test_wrong_settings_are_refused() -> None:
    for wrong in ({"probes": 0}, {"failure_share": 0.0}, {"open_s": 90.0}, {"jitter": 1.0}):
        with pytest.raises(ValueError, match="1 validation error"):
            BreakerSettings.model_validate(wrong)


def test_a_rest_that_was_asked_for_is_never_cut_short_by_chance() -> None:
    for seed in range(50):
        settings = BreakerSettings(jitter=0.2)
        breaker = Breaker(settings, clock=FakeTime(), rng=random.Random(seed))
        breaker.fail(enter(breaker), rest_s=30.0)
        assert 30.0 <= breaker.opens_for <= 36.0


def test_it_rests_as_long_as_was_asked_for_and_no_longer_than_the_bound() -> None:
    breaker, fake = a_breaker(open_s=5.0, open_max_s=40.0)
    fail(breaker, 5)
    assert (breaker.state, breaker.is_resting) == ("open", False)
    breaker, fake = a_breaker(open_s=50.0, open_max_s=60.0)
    breaker.fail(enter(breaker), rest_s=30.0)
    fake.now += 29.9
    assert breaker.is_resting
    fake.now += 0.1
    assert (breaker.is_resting, breaker.state) == (False, "open")


def test_the_outcome_of_a_call_it_refused_changes_nothing() -> None:
    breaker, fake = a_breaker(consecutive_failures=1, open_s=5.0)
    fail(breaker)
    fake.now += 3.0
    breaker.fail(FORCED)
    breaker.succeed(FORCED)
    assert (breaker.state, breaker.opens_for) == ("open", 2.0)
