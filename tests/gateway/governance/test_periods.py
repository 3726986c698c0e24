from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.governance.periods import elapsed_share, parse_period, period_of
from tests.gateway.governance.asking import FakeTime

PERIODS = ("hour", "day", "week", "month", "1d", "30d")
times = st.floats(min_value=0, max_value=4e9)
weights = st.lists(st.floats(0, 10), min_size=24, max_size=24).filter(lambda w: sum(w) > 0.1)


def unix(*date: int) -> float:
    return datetime(*date, tzinfo=UTC).timestamp()  # type: ignore[misc]


@given(st.sampled_from(PERIODS), times)
def test_periods_hold_their_times_and_follow_on_each_other(period: str, at: float) -> None:
    start, end = period_of(period, at)
    assert start <= at < end
    assert period_of(period, end)[0] == end
    assert period_of(period, start) == (start, end)


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("month", (2027, 12, 1), (2028, 1, 1)),
        ("week", (2027, 12, 27), (2028, 1, 3)),
        ("day", (2027, 12, 31), (2028, 1, 1)),
    ],
)
def test_calendar_periods_are_those_of_utc(
    period: str, start: tuple[int, ...], end: tuple[int, ...]
) -> None:
    assert period_of(period, unix(2027, 12, 31, 23, 59)) == (unix(*start), unix(*end))


@pytest.mark.parametrize("text", ["year", "", "0d", "d", "-1d", "99999d", "1.5d"])
def test_an_unknown_period_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ValueError, match="expected hour, day, week, month"):
        parse_period(text)


@given(st.sampled_from(PERIODS), times, times, weights)
def test_the_elapsed_share_rises_from_0_to_1(
    period: str, at: float, later: float, traffic: list[float]
) -> None:
    start, end = period_of(period, at)
    one, other = sorted((at, later))
    assert elapsed_share(start, end, start, traffic) == 0
    assert elapsed_share(start, end, end, traffic) == pytest.approx(1)
    shares = [elapsed_share(start, end, t, traffic) for t in (one, other)]
    assert 0 <= shares[0] <= shares[1] + 1e-9 <= 1 + 2e-9


def test_the_elapsed_share_follows_the_traffic_of_the_hours() -> None:
    start, end = period_of("day", unix(2027, 5, 5))
    morning = [1.0] * 12 + [0.0] * 12
    assert elapsed_share(start, end, start + 6 * 3600, morning) == pytest.approx(0.5)
    assert elapsed_share(start, end, start + 6 * 3600) == pytest.approx(0.25)
    assert elapsed_share(start, end, start + 18 * 3600, morning) == pytest.approx(1)


@given(st.floats(-1e8, 1e8).filter(lambda jump: abs(jump) > 2))
def test_a_jump_of_the_wall_clock_forth_and_back_changes_nothing(jump: float) -> None:
    time = FakeTime()
    clock = time.clock()
    before = clock.now()
    time.wall += jump
    assert clock.now() == before
    assert clock.watch() is False
    time.pass_(30)
    assert clock.watch() is False
    time.wall -= jump
    assert clock.watch() is False
    assert clock.now() == pytest.approx(before + 30, abs=1e-3)


def test_a_jump_that_lasts_a_minute_is_believed() -> None:
    time = FakeTime()
    clock = time.clock()
    time.wall += 7200
    clock.watch()
    time.pass_(61)
    assert clock.watch() is True
    assert clock.now() == time.wall


def test_small_drift_is_followed_at_once() -> None:
    time = FakeTime()
    clock = time.clock()
    time.wall += 0.5
    assert clock.watch() is False
    assert clock.now() == time.wall
