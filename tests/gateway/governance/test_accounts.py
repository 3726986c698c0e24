from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.governance.accounts import Balance, Bucket, block_of

steps = st.lists(
    st.tuples(st.integers(-100, 2_000), st.integers(0, 40), st.integers(0, 40)), max_size=60
)


@given(st.integers(1, 50), st.integers(1, 1_000), steps)
def test_a_bucket_is_exact(limit: int, period: int, found: list[tuple[int, int, int]]) -> None:
    """Against rational numbers: level + elapsed * limit / period, at most the limit."""
    bucket, now = Bucket(limit, period, 0), 0
    level, seen = Fraction(limit), 0
    for passed, taken, given_back in found:
        now += passed
        level = min(Fraction(limit), level + Fraction(max(0, now - seen) * limit, period))
        seen = now
        is_taken = bucket.take(taken, now)
        assert is_taken == (taken <= level)
        level -= taken if is_taken else 0
        bucket.give(given_back, now)
        level = min(Fraction(limit), level + given_back)
        assert bucket.free(now) == level.__floor__()


@given(st.integers(1, 50), st.integers(1, 1_000), steps)
def test_in_any_window_a_bucket_gives_no_more_than_it_held_and_gained(
    limit: int, period: int, found: list[tuple[int, int, int]]
) -> None:
    bucket, now, taken = Bucket(limit, period, 0), 0, 0
    for passed, n, _ in found:
        now += max(0, passed)
        taken += n if bucket.take(n, now) else 0
        assert taken <= limit + Fraction(now * limit, period)


@given(st.integers(1, 50), st.integers(1, 1_000), st.integers(0, 60), st.integers(0, 60))
def test_the_wait_is_the_first_tick_at_which_units_can_be_taken(
    limit: int, period: int, first: int, n: int
) -> None:
    bucket = Bucket(limit, period, 0)
    bucket.take(first, 0)
    wait = bucket.wait(n, 0)
    if wait is None:
        assert n > limit
        return
    early = Bucket(limit, period, 0, bucket.level)
    assert wait == 0 or not early.take(n, wait - 1)
    assert bucket.take(n, wait)


def test_a_clock_that_goes_back_neither_fills_nor_locks_a_bucket() -> None:
    bucket = Bucket(10, 100, 1_000)
    assert bucket.take(10, 1_000)
    assert not bucket.take(1, 0)
    assert bucket.take(1, 10)  # ten ticks later by the clock as it now is


def test_a_debt_is_paid_before_units_are_there_again() -> None:
    bucket = Bucket(10, 100, 0)
    bucket.give(-15, 0)
    assert bucket.free(0) == -5
    assert not bucket.take(1, 59)
    assert bucket.take(1, 60)


@given(st.integers(0, 100), st.lists(st.integers(0, 30)))
def test_a_balance_is_never_overdrawn_by_taking(limit: int, asked: list[int]) -> None:
    balance = Balance(limit)
    taken = sum(n for n in asked if balance.take(n, 0))
    assert taken == balance.spent <= limit
    assert balance.free(0) == limit - taken


@given(st.integers(0, 1_000), st.integers(0, 1_000), st.integers(-50, 1_000))
def test_a_block_is_what_is_needed_or_a_modest_part_of_what_is_left(
    need: int, block: int, free: int
) -> None:
    found = block_of(need, block, free)
    assert 0 <= found <= max(0, free)
    assert found == min(need, max(0, free)) or need < found <= min(block, free // 8)
