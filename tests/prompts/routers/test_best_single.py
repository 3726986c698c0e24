from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts.decide import Argmax
from crossroads.prompts.routers import build_router
from tests.prompts.routers.tables import change, outcomes, queries


@given(st.integers(1, 6), st.floats(0.0, 0.7), st.integers(0, 1000))
def test_argmax_takes_the_model_of_highest_training_mean(
    num_models: int, missing: float, seed: int
) -> None:
    data = outcomes(40, num_models, missing=missing, seed=seed)
    router = build_router("best-single").fit(data)
    means = np.nanmean(data.scores.astype(np.float64), axis=0)
    estimate = router.predict(queries(outcomes(7, num_models), router))
    np.testing.assert_allclose(estimate, np.tile(means, (7, 1)), rtol=1e-12)
    chosen = Argmax().choose(estimate, data.costs[:7])
    assert (means[chosen] >= means.max() - 1e-12).all()


def test_cells_that_were_not_run_do_not_count_as_failures() -> None:
    scores = np.array([[1.0, 1.0], [np.nan, 0.0], [np.nan, 1.0]], dtype=np.float32)
    data = change(outcomes(3, 2), scores=scores)
    router = build_router("best-single").fit(data)
    np.testing.assert_allclose(router.predict(queries(data, router))[0], [1.0, 2 / 3])
