"""The price of a paced budget, on SIMULATED streams of calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.governance.pacing import Pacer, PaceState

START, DAY = 1_800_057_600.0, 86_400.0
END = START + DAY
COST = np.array([1.0, 6.0, 30.0]) * 1e-4
BUDGET = 4.0


def calls(seed: int, *, num: int = 4_000) -> tuple[Any, Any, Any]:
    """Times, qualities (N, 3), costs: three quarters of the calls come in the second half."""
    rng = np.random.default_rng(seed)
    late = rng.random(num) < 0.75
    at = START + np.sort(rng.uniform(0, DAY / 2, num) + np.where(late, DAY / 2, 0.0))
    hardness = rng.beta(1.2, 2.5, num)[:, None]
    quality = 0.9 - hardness * np.array([0.6, 0.3, 0.05]) + rng.normal(0, 0.03, (num, 3))
    return at, quality, COST * rng.lognormal(-0.18, 0.6, num)[:, None]


def spend(pacer: Pacer, at: Any, quality: Any, cost: Any) -> tuple[float, float]:
    """Return USD spent and quality won."""
    spent, gained, num = 0.0, 0.0, 0
    for i in range(len(at)):
        if pacer.is_due(START, END, at[i]):
            pacer.step(START, END, at[i], spent_usd=spent, calls=num)
        k = int(np.argmax(quality[i] - pacer.price * cost[i]))
        if spent + cost[i, k] <= BUDGET:
            spent, gained, num = spent + cost[i, k], gained + quality[i, k], num + 1
    return spent, gained


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_spend_is_the_budget_and_wins_more_than_cutting_off(seed: int) -> None:
    at, quality, cost = calls(seed)
    traffic = (1.0,) * 12 + (3.0,) * 12
    spent, gained = spend(Pacer(BUDGET, traffic=traffic), at, quality, cost)
    assert 0.97 * BUDGET <= spent <= BUDGET
    best = quality.argmax(axis=1)
    within = np.cumsum(cost[np.arange(len(best)), best]) <= BUDGET
    cut_off_then_cheapest = np.where(within, quality.max(axis=1), quality[:, 0]).sum()
    assert gained > cut_off_then_cheapest * 1.03


@pytest.mark.parametrize("first_price", [None, 300.0])
def test_a_budget_that_is_never_short_costs_nothing(first_price: float | None) -> None:
    at, quality, cost = calls(0)
    pacer = Pacer(1_000.0, first_price=first_price)
    spend(pacer, at, quality, cost * 0.01)
    assert pacer.price == 0.0


def free_or_paid(
    pacer: Pacer, usd: float, *, seed: int = 0, burst: int = 1, days: int = 3
) -> tuple[list[float], list[float]]:
    """Return each day's spend and spend before 21:36, in shares of the budget.

    A call every ten seconds, and ``burst`` of them from 8:20 to 8:30; a model that is better by 0
    to 0.4 costs 0.01 USD, the other one nothing.
    """
    rng = np.random.default_rng(seed)
    whole, most = [], []
    for day in range(days):
        start, end = START + day * DAY, END + day * DAY
        spent, num, early = 0.0, 0, 0.0
        for at in np.arange(start, end, 10.0):
            for _ in range(burst if 30_000 <= at - start < 30_600 else 1):
                if rng.uniform(0, 0.4) > pacer.price * 0.01 and spent + 0.01 <= usd:
                    spent, num = spent + 0.01, num + 1
                else:
                    pacer.num_free += 1
            if pacer.is_due(start, end, at):
                pacer.step(start, end, at, spent_usd=spent, calls=num)
            early = spent if at - start < 0.9 * DAY else early
        whole.append(spent / usd)
        most.append(early / usd)
    return whole, most


@pytest.mark.parametrize("first_price", [None, 1e4])
@pytest.mark.parametrize("burst", [1, 50])
def test_beside_a_free_model_the_money_is_spent_and_lasts(
    first_price: float | None, burst: int
) -> None:
    whole, early = free_or_paid(Pacer(10.0, first_price=first_price), 10.0, burst=burst)
    assert all(0.95 < share <= 1.001 for share in whole), whole
    assert all(0.8 < share < 0.97 for share in early[1:]), early


def test_a_price_above_every_gap_comes_down_while_all_goes_to_the_free_model() -> None:
    pacer = Pacer(10.0, first_price=1e4)
    pacer.step(START, END, START, spent_usd=0.0, calls=0)
    for at in (600.0, 1200.0, 1800.0):
        before = pacer.price
        pacer.num_free = 60
        pacer.step(START, END, START + at, spent_usd=0.0, calls=0)
        assert pacer.price < 0.85 * before
        assert pacer.num_free == 0


def test_where_nobody_asked_the_price_stays() -> None:
    pacer = Pacer(10.0, first_price=50.0)
    for at in (0.0, 600.0, 40_000.0):
        pacer.step(START, END, START + at, spent_usd=0.0, calls=0)
    assert pacer.price == 50.0


def test_a_step_is_put_off_until_two_calls_could_be_paid() -> None:
    pacer = Pacer(10.0, first_price=50.0)
    pacer.adopt(PaceState(price=50.0, at=START, start=START, mean_usd=0.1))
    pacer.num_free = 30
    before = pacer.state
    pacer.step(START, END, START + 600, spent_usd=0.0, calls=0)
    assert pacer.state is before
    pacer.step(START, END, START + 1_800, spent_usd=0.0, calls=0)
    assert pacer.price < 50.0


def test_what_a_burst_spent_too_much_is_made_up_for_before_the_price_falls() -> None:
    pacer = Pacer(10.0, first_price=50.0)
    pacer.adopt(PaceState(price=50.0, at=START, start=START, mean_usd=0.001))
    pacer.step(START, END, START + 600, spent_usd=0.5, calls=500)
    high = pacer.price
    assert high > 50.0
    pacer.num_free = 500
    pacer.step(START, END, START + 1_200, spent_usd=0.5, calls=500)
    assert pacer.price == high
    for at in range(1_800, 10_000, 600):
        pacer.num_free = 500
        pacer.step(START, END, START + at, spent_usd=0.5, calls=500)
    assert pacer.price < high


def test_a_pace_goes_on_where_another_left_off() -> None:
    at, _, cost = calls(1)
    whole, first = Pacer(BUDGET / 10), Pacer(BUDGET / 10)
    half = len(at) // 2
    spent = num = 0.0
    for i in range(half):
        for pacer in (whole, first):
            if pacer.is_due(START, END, at[i]):
                pacer.step(START, END, at[i], spent_usd=spent, calls=int(num))
        spent, num = spent + cost[i, 1], num + 1
    second = Pacer(BUDGET / 10)
    second.adopt(PaceState.from_dict(first.state.to_dict()))
    for pacer in (whole, second):
        pacer.step(START, END, at[half] + 600, spent_usd=spent, calls=int(num))
    assert second.state == whole.state
    assert second.price == whole.price > 0


def test_a_new_period_starts_with_the_price_of_the_last() -> None:
    pacer = Pacer(1.0, first_price=50.0)
    pacer.step(START, END, START + 600, spent_usd=0.1, calls=100)
    before = pacer.price
    assert pacer.is_due(END, END + DAY, END)
    pacer.step(END, END + DAY, END + 1, spent_usd=0.0, calls=0)
    assert pacer.price == before
    assert (pacer.state.spent_usd, pacer.state.calls) == (0.0, 0)


def test_it_steps_about_500_times_a_period_and_at_most_once_a_second() -> None:
    pacer = Pacer(1.0)
    pacer.step(START, END, START, spent_usd=0, calls=0)
    assert not pacer.is_due(START, END, START + 172)
    assert pacer.is_due(START, END, START + 173)


@given(
    st.lists(st.tuples(st.floats(0, 5_000), st.floats(0, 100), st.integers(0, 1_000)), max_size=60)
)
def test_the_price_stays_within_its_bounds(found: list[tuple[float, float, int]]) -> None:
    pacer, at, spent, num = Pacer(10.0), START, 0.0, 0
    for passed, usd, calls_ in found:
        at, spent, num = at + passed, spent + usd, num + calls_
        pacer.step(START, END, at, spent_usd=spent, calls=num)
        mean = pacer.state.mean_usd
        assert pacer.price >= 0
        assert pacer.price * mean <= 100 * 1.001
        assert PaceState.from_dict(pacer.state.to_dict()) == pacer.state


@pytest.mark.parametrize(
    "values", [{"price": -1.0}, {"price": float("nan")}, {"cost": 1.0}, {"price": "x"}, [], None]
)
def test_a_state_that_is_none_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match=r"pace|could not convert"):
        PaceState.from_dict(values)
