from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import UsageError
from crossroads.prompts.decide import Argmax, MaxCost, MinQuality, Tradeoff, parse_rule

COST = np.array([0.1, 0.2, 0.4])


def one(rule: object, quality: list[float], cost: np.ndarray = COST) -> int:
    return int(rule.choose(np.array([quality]), cost)[0])  # type: ignore[attr-defined]


def problems() -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    """Quality (N, K) and cost (N, K) on a coarse grid, so that ties happen."""

    def build(shape: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        return rng.integers(0, 5, shape) / 4, rng.integers(0, 4, shape) / 4

    shapes = st.tuples(st.integers(1, 6), st.integers(1, 5))
    return st.builds(build, shapes, st.integers(0, 2**32))


def reference(value: np.ndarray, cost: np.ndarray) -> list[int]:
    """The slow way: highest value, then lowest cost, then first."""
    return [
        min(range(value.shape[1]), key=lambda k: (-value[n, k], cost[n, k], k))
        for n in range(len(value))
    ]


@given(problems())
def test_argmax_takes_the_best_then_the_cheaper_then_the_first(
    problem: tuple[np.ndarray, np.ndarray],
) -> None:
    quality, cost = problem
    assert Argmax().choose(quality, cost).tolist() == reference(quality, cost)


@given(problems(), st.sampled_from([0.0, 0.5, 1.0, 4.0]))
def test_tradeoff_takes_the_best_quality_less_priced_cost(
    problem: tuple[np.ndarray, np.ndarray], price: float
) -> None:
    quality, cost = problem
    expected = reference(quality - price * cost, cost)
    assert Tradeoff(price).choose(quality, cost).tolist() == expected


@given(problems(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_max_cost_is_kept_whenever_a_model_allows_it(
    problem: tuple[np.ndarray, np.ndarray], usd: float
) -> None:
    quality, cost = problem
    rows = np.arange(len(quality))
    choice = MaxCost(usd).choose(quality, cost)
    paid = cost[rows, choice]
    assert (paid <= np.maximum(usd, cost.min(axis=1))).all()
    for n in rows:
        allowed = cost[n] <= max(usd, cost[n].min())
        assert quality[n, choice[n]] == quality[n][allowed].max()


@given(problems(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_min_quality_takes_the_cheapest_that_reaches_it(
    problem: tuple[np.ndarray, np.ndarray], floor: float
) -> None:
    quality, cost = problem
    choice = MinQuality(floor).choose(quality, cost)
    for n in range(len(quality)):
        reached = quality[n] >= min(floor, quality[n].max())
        assert reached[choice[n]]
        assert cost[n, choice[n]] == cost[n][reached].min()


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_a_free_tradeoff_is_argmax_and_a_dear_one_the_cheapest(quality: list[float]) -> None:
    assert one(Tradeoff(0.0), quality) == one(Argmax(), quality)
    assert one(Tradeoff(1e6), quality) == 0


def test_one_model_is_always_chosen() -> None:
    for rule in (Argmax(), Tradeoff(3.0), MaxCost(0.0), MinQuality(1.0)):
        assert rule.choose(np.array([[0.2], [0.9]]), np.array([5.0])).tolist() == [0, 0]


def test_costs_may_be_given_per_prompt() -> None:
    quality = np.array([[0.5, 0.5], [0.5, 0.5]])
    cost = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert Argmax().choose(quality, cost).tolist() == [0, 1]


@given(
    st.one_of(
        st.just(Argmax()),
        st.builds(Tradeoff, st.integers(0, 10**6).map(float)),
        st.builds(MaxCost, st.sampled_from([0.0, 0.25, 1e-6])),
        st.builds(MinQuality, st.sampled_from([0.0, 0.7, 1.0])),
    )
)
def test_a_rule_reads_back_from_its_text(rule: object) -> None:
    assert parse_rule(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("argmx", "did you mean 'argmax'"),
        ("tradeof:1", "did you mean 'tradeoff'"),
        ("argmax:1", "unknown decision rule"),
        ("tradeoff", "expected tradeoff:NUMBER"),
        ("max-cost:cheap", "expected max-cost:NUMBER"),
        ("max-cost:-1", "expected a number >= 0, got -1.0"),
        ("tradeoff:nan", "expected a number >= 0, got nan"),
        ("min-quality:inf", "expected a number >= 0, got inf"),
    ],
)
def test_a_wrong_rule_is_refused_on_one_line(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_rule(text)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
