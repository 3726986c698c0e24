"""A cascade played on recorded answers and with live models."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UnavailableError
from crossroads.prompts.cascade import Cascade

INF = float("inf")


@st.composite
def recorded(draw: st.DrawFn) -> tuple[Cascade, np.ndarray, np.ndarray]:
    """A cascade over some of up to 4 models, coarse acceptance (N, K), costs (N, K)."""
    n, k = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    order = tuple(draw(st.permutations(range(k)))[: draw(st.integers(1, k))])
    levels = st.sampled_from([-INF, 0.0, 0.25, 0.5, 1.0, INF])
    thresholds = tuple(draw(levels) for _ in order[1:])
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    cascade = Cascade(order=order, thresholds=thresholds)
    return cascade, rng.integers(0, 5, (n, k)) / 4, rng.uniform(0, 1, (n, k))


@given(recorded())
def test_a_replay_follows_the_rule_prompt_by_prompt(
    case: tuple[Cascade, np.ndarray, np.ndarray],
) -> None:
    cascade, acceptance, cost = case
    played = cascade.replay(acceptance, cost)
    for n in range(len(acceptance)):
        paid, calls = 0.0, 0
        for column, tau in zip(cascade.order, (*cascade.thresholds, -INF), strict=True):
            paid, calls = paid + cost[n, column], calls + 1
            if acceptance[n, column] >= tau:
                break
        assert played.chosen_N[n] == column
        assert played.num_calls_N[n] == calls
        assert played.cost_N[n] == pytest.approx(paid)


@given(recorded())
def test_the_cost_is_never_below_that_of_the_answer_alone(
    case: tuple[Cascade, np.ndarray, np.ndarray],
) -> None:
    cascade, acceptance, cost = case
    played = cascade.replay(acceptance, cost)
    alone = cost[np.arange(len(cost)), played.chosen_N]
    assert (played.cost_N >= alone - 1e-12).all()
    assert ((played.num_calls_N == 1) <= np.isclose(played.cost_N, alone)).all()


def answer(column: int, usd: float, prompt: str) -> tuple[str, float]:
    return f"answer {column}", usd


def judge(accept_K: list[float], prompt: str, answer: str, column: int) -> float:
    return accept_K[column]


@given(recorded())
def test_live_models_that_answer_as_recorded_give_the_replay(
    case: tuple[Cascade, np.ndarray, np.ndarray],
) -> None:
    cascade, acceptance, cost = case
    played = cascade.replay(acceptance, cost)
    for n, (cost_K, accept_K) in enumerate(zip(cost.tolist(), acceptance.tolist(), strict=True)):
        models = [partial(answer, k, usd) for k, usd in enumerate(cost_K)]
        asked = cascade.ask("prompt", models, partial(judge, accept_K))
        assert asked.model == played.chosen_N[n]
        assert asked.answer == f"answer {asked.model}"
        assert asked.cost_usd == pytest.approx(played.cost_N[n])
        assert len(asked.calls) == played.num_calls_N[n]


def down(prompt: str) -> tuple[str, float]:
    raise UnavailableError("no answer from the model; start it")


def test_a_model_that_is_down_is_passed_over() -> None:
    cascade = Cascade(order=(0, 1), thresholds=(0.5,))
    asked = cascade.ask("q", [down, lambda _: ("yes", 2.0)], lambda p, a, k: 1.0)
    assert (asked.answer, asked.model, asked.cost_usd) == ("yes", 1, 2.0)
    assert "no answer" in asked.calls[0].error


def test_when_the_last_is_down_the_best_judged_answer_is_taken() -> None:
    cascade = Cascade(order=(0, 1, 2), thresholds=(0.9, 0.9))
    models = [lambda _: ("first", 1.0), lambda _: ("second", 2.0), down]
    asked = cascade.ask("q", models, lambda p, a, k: (0.4, 0.3)[k])
    assert (asked.answer, asked.model, asked.cost_usd) == ("first", 0, 3.0)


def test_when_all_are_down_the_failure_is_the_users() -> None:
    cascade = Cascade(order=(0, 1), thresholds=(0.5,))
    with pytest.raises(UnavailableError, match="no answer from the model"):
        cascade.ask("q", [down, down], lambda p, a, k: 1.0)


@pytest.mark.parametrize(
    ("order", "thresholds", "problem"),
    [
        ((), (), "expected different columns >= 0"),
        ((0, 0), (0.5,), "expected different columns >= 0"),
        ((-1, 0), (0.5,), "expected different columns >= 0"),
        ((0, 1), (), "expected 1 thresholds for 2 models, got 0"),
        ((0, 1), (float("nan"),), "a threshold is NaN"),
    ],
)
def test_a_wrong_cascade_is_refused(
    order: tuple[int, ...], thresholds: tuple[float, ...], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        Cascade(order=order, thresholds=thresholds)


@pytest.mark.parametrize(
    ("acceptance", "cost", "problem"),
    [
        (np.ones(3), np.ones(2), "expected acceptance of shape"),
        (np.ones((0, 2)), np.ones(2), "expected acceptance of shape"),
        (np.ones((2, 2)), np.ones(3), "costs of shape"),
        (np.ones((2, 1)), np.ones(1), "column 1 is asked, the pool has 1 models"),
        (np.full((2, 2), np.nan), np.ones(2), "hold NaN"),
        (np.ones((2, 2)), np.full(2, np.nan), "hold NaN"),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    acceptance: np.ndarray, cost: np.ndarray, problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        Cascade(order=(0, 1), thresholds=(0.5,)).replay(acceptance, cost)


def test_the_last_models_answer_needs_no_judgement() -> None:
    acceptance = np.array([[0.2, np.nan], [0.8, np.nan]])
    played = Cascade(order=(0, 1), thresholds=(0.5,)).replay(acceptance, np.array([1.0, 5.0]))
    assert played.chosen_N.tolist() == [1, 0]
    assert played.cost_N.tolist() == [6.0, 1.0]
