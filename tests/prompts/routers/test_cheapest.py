from __future__ import annotations

import numpy as np

from crossroads.prompts.decide import Argmax
from crossroads.prompts.routers import build_router
from tests.prompts.routers.tables import change, outcomes, queries

COSTS = np.array([[4.0, 1.0, 2.0], [4.0, 3.0, np.nan], [4.0, 2.0, 2.0]])  # means 4, 2, 2


def estimate(costs: np.ndarray) -> np.ndarray:
    data = change(outcomes(len(costs)), costs=costs)
    router = build_router("cheapest").fit(data)
    return router.predict(queries(outcomes(5), router))


def test_quality_falls_linearly_with_the_mean_cost() -> None:
    np.testing.assert_allclose(estimate(COSTS), np.tile([0.0, 0.5, 0.5], (5, 1)))


def test_argmax_takes_the_cheapest_model() -> None:
    costs = COSTS * [1.0, 1.0, 0.9]
    assert (Argmax().choose(estimate(costs), np.nanmean(costs, axis=0)) == 2).all()


def test_the_answers_do_not_matter() -> None:
    data = outcomes(30)
    flipped = change(data, scores=1 - data.scores)
    one, other = (build_router("cheapest").fit(d) for d in (data, flipped))
    np.testing.assert_array_equal(
        one.predict(queries(data, one)), other.predict(queries(data, other))
    )


def test_without_known_or_with_free_costs_all_models_are_equal() -> None:
    for costs in (np.full((3, 3), np.nan), np.zeros((3, 3))):
        assert np.ptp(estimate(costs)) == 0.0
