from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.pool import ModelCard, Pool
from crossroads.prompts.tryage.goals import (
    GOALS,
    LeastPenalisedLoss,
    cost,
    penalties,
    recency,
    scaled,
    size,
    sweep,
)

POOL = Pool(
    models=(
        ModelCard(name="small", parameters=1e8, price_in=0.1, tags=("released:2024-01-01",)),
        ModelCard(name="middle", parameters=1e9, price_in=0.3, tags=("x", "released:2024-01-31")),
        ModelCard(name="large", parameters=1e10, price_out=1.1, tags=("released:2023-11-02",)),
    )
)
LOSSES = hnp.arrays(np.float64, (7, 3), elements=st.floats(0, 5, width=16))


def test_size_is_the_logarithm_of_parameters() -> None:
    np.testing.assert_allclose(scaled(size(POOL), name="size", num_experts=3), [0.0, 0.5, 1.0])


def test_recency_is_the_age_in_days() -> None:
    np.testing.assert_array_equal(recency(POOL), [30, 0, 90])
    np.testing.assert_allclose(penalties(POOL, {"recency": 1.0}), [1 / 3, 0.0, 1.0])


def test_cost_is_that_of_a_call() -> None:
    np.testing.assert_allclose(cost(POOL), [1e-4, 3e-4, 1.1e-3])


def test_goals_add_up_with_their_weights() -> None:
    both = penalties(POOL, {"size": 2.0, "cost": 3.0})
    alone = 2.0 * penalties(POOL, {"size": 1.0}) + 3.0 * penalties(POOL, {"cost": 1.0})
    np.testing.assert_allclose(both, alone)


def test_a_goal_of_no_weight_needs_no_facts() -> None:
    np.testing.assert_array_equal(penalties(Pool.of(["a", "b"]), {"size": 0.0}), [0.0, 0.0])


def test_own_goals_are_functions_of_the_pool() -> None:
    goals = {**GOALS, "letters": lambda pool: [len(name) for name in pool.names]}
    np.testing.assert_allclose(penalties(POOL, {"letters": 1.0}, goals), [0.0, 1.0, 0.0])


def test_experts_that_are_equal_are_not_penalised() -> None:
    np.testing.assert_array_equal(scaled([4.0, 4.0], name="x", num_experts=2), [0.0, 0.0])


@given(hnp.arrays(np.float64, 4, elements=st.floats(-1e6, 1e6)))
def test_scaled_values_span_zero_to_one_in_the_same_order(values: np.ndarray) -> None:
    found = scaled(values, name="x", num_experts=4)
    assert found.min() == 0.0
    assert found.max() in (0.0, 1.0)
    order = np.argsort(values)
    assert (np.diff(found[order]) >= 0).all()


@pytest.mark.parametrize("values", [[1.0], [1.0, np.nan, 0.0], [[1.0, 2.0, 3.0]], 3.0])
def test_a_goal_gives_one_finite_number_an_expert(values: object) -> None:
    with pytest.raises(InputError, match="goal 'mine': expected a finite number for each of 3"):
        penalties(POOL, {"mine": 1.0}, {"mine": lambda pool: values})  # type: ignore[dict-item]


def test_missing_facts_are_named() -> None:
    pool = Pool.of(["a", "b"])
    with pytest.raises(InputError, match="no parameters for a, b; add the field 'parameters'"):
        size(pool)
    with pytest.raises(InputError, match=r"model 'a' needs a tag released:YYYY-MM-DD.*has none"):
        recency(pool)
    odd = Pool(models=(ModelCard(name="a", tags=("released:soon",)),))
    with pytest.raises(InputError, match="has 'soon'"):
        recency(odd)


def test_unknown_goals_and_odd_weights_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown goal 'sise'; did you mean 'size'"):
        penalties(POOL, {"sise": 1.0})
    for weight in (-1.0, np.nan, np.inf):
        with pytest.raises(UsageError, match="goal 'size': expected a weight >= 0"):
            penalties(POOL, {"size": weight})


@given(LOSSES, hnp.arrays(np.float64, 3, elements=st.floats(0, 2, width=16)))
def test_the_rule_takes_the_least_loss_plus_penalty(
    losses: np.ndarray, penalty: np.ndarray
) -> None:
    choice = LeastPenalisedLoss(penalty).choose(1.0 - losses, np.zeros(3))
    total = losses + penalty
    np.testing.assert_allclose(total[np.arange(7), choice], total.min(axis=1), atol=1e-9)


@given(LOSSES, st.lists(st.floats(0, 50), min_size=2, max_size=8))
def test_mean_size_never_rises_with_its_weight(losses: np.ndarray, weights: list[float]) -> None:
    parameters = np.array([1e8, 1e9, 1e10])
    found = sweep(losses, losses, penalty=np.array([0.0, 0.5, 1.0]), measure=parameters,
                  weights=weights)  # fmt: skip
    assert (np.diff(found.measure) <= 1e-6).all()
    np.testing.assert_allclose(found.share.sum(axis=1), 1.0)


def test_a_sweep_goes_from_the_best_to_the_smallest_expert() -> None:
    losses = np.array([[2.0, 1.0], [2.0, 1.5]])
    found = sweep(losses, losses, penalty=np.array([0.0, 1.0]), measure=np.array([1.0, 5.0]),
                  weights=[0.0, 0.75, 2.0])  # fmt: skip
    np.testing.assert_allclose(found.loss, [1.25, 1.5, 2.0])
    np.testing.assert_allclose(found.measure, [5.0, 3.0, 1.0])
    assert found.is_on_front.all()
