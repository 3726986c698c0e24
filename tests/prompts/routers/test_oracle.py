from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts.decide import Argmax
from crossroads.prompts.router import Queries
from crossroads.prompts.routers import build_router
from tests.prompts.routers.tables import argmax_quality, outcomes, queries


@given(st.integers(1, 6), st.integers(0, 1000))
def test_it_has_no_regret(num_models: int, seed: int) -> None:
    data = outcomes(50, num_models, seed=seed)
    router = build_router("oracle").fit(outcomes(10, num_models))
    quality = argmax_quality(router.predict(queries(data, router)), data)
    assert quality == float(data.scores.max(axis=1).mean())


def test_among_equally_good_models_the_cheapest_is_taken() -> None:
    truth = np.array([[1, 1, 0], [0, 0, 0], [0.5, 0.2, 0.5]], dtype=np.float32)
    cost = np.array([3.0, 1.0, 2.0])
    router = build_router("oracle").fit(outcomes(10))
    estimate = router.predict(Queries(embeddings=np.zeros((3, 1), np.float32), truth=truth))
    assert Argmax().choose(estimate, cost).tolist() == [1, 1, 2]


def test_a_model_that_was_not_run_counts_as_wrong() -> None:
    truth = np.array([[np.nan, 0.25], [np.nan, np.nan]], dtype=np.float32)
    router = build_router("oracle").fit(outcomes(10, 2))
    estimate = router.predict(Queries(embeddings=np.zeros((2, 1), np.float32), truth=truth))
    np.testing.assert_array_equal(estimate, [[0.0, 0.25], [0.0, 0.0]])
