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
