from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError
from crossroads.prompts.router import PromptRouter, Queries
from crossroads.prompts.routers import build_router
from tests.prompts.routers.tables import change, outcomes, queries

# Mean training scores 0.6, 0.2 and 0.4.
TRAINING = np.array([[1, 1, 1], [1, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=np.float32)


@pytest.fixture
def router() -> PromptRouter:
    return build_router("oracle-chance-aware").fit(change(outcomes(5), scores=TRAINING))


def asked(truth: Any, chance: Any) -> Queries:
    truth = np.array(truth, dtype=np.float32)
    return Queries(
        embeddings=np.zeros((len(truth), 1), np.float32),
        truth=truth,
        chance=None if chance is None else np.array(chance, dtype=np.float32),
    )


def test_credit_is_the_expected_score_of_asking_again(router: PromptRouter) -> None:
    # c = 1/4. a = 0.6: kappa = 0.35 / 0.75 = 7/15, P(knew) = 7/9, credit = 7/9 + 2/9 * 1/4 = 5/6.
    # a = 0.2 is below chance: it knows nothing, credit = c.
    # a = 0.4: kappa = 0.15 / 0.75 = 1/5, P(knew) = 1/2, credit = 1/2 + 1/2 * 1/4 = 5/8.
    estimate = router.predict(asked([[1, 1, 1], [0, 1, 1], [0, 0, 0]], [0.25] * 3))
    expected = [[5 / 6, 1 / 4, 5 / 8], [0, 1 / 4, 5 / 8], [0, 0, 0]]
    np.testing.assert_allclose(estimate, expected, rtol=1e-6)


def test_partial_scores_get_partial_credit(router: PromptRouter) -> None:
    estimate = router.predict(asked([[0.5, np.nan, 0.8]], [0.25]))
    np.testing.assert_allclose(estimate, [[5 / 12, 0.0, 0.5]], rtol=1e-6)


def test_each_prompt_has_its_own_chance(router: PromptRouter) -> None:
    estimate = router.predict(asked([[1, 1, 1]] * 3, [0.0, 0.25, 0.5]))
    # c = 1/2, a = 0.6: kappa = 1/5, P(knew) = 1/3, credit = 1/3 + 2/3 * 1/2 = 2/3.
    np.testing.assert_allclose(estimate[:, 0], [1.0, 5 / 6, 2 / 3], rtol=1e-6)


def test_where_nobody_guesses_it_is_the_oracle(router: PromptRouter) -> None:
    data = outcomes(30, missing=0.2)
    estimate = router.predict(asked(data.scores, np.zeros(30)))
    oracle = build_router("oracle").fit(data)
    np.testing.assert_allclose(estimate, oracle.predict(queries(data, oracle)), rtol=1e-12)


def test_where_every_guess_is_right_nothing_is_discounted(router: PromptRouter) -> None:
    estimate = router.predict(asked([[1, 1, 0]], [1.0]))
    np.testing.assert_allclose(estimate, [[1, 1, 0]], atol=2e-3)


@given(st.integers(0, 1000), st.floats(0.0, 1.0))
def test_credit_lies_between_chance_and_the_outcome(seed: int, chance: float) -> None:
    data = outcomes(20, seed=seed)
    router = build_router("oracle-chance-aware").fit(data)
    estimate = router.predict(asked(data.scores, np.full(20, chance)))
    assert (estimate <= data.scores + 1e-9).all()
    assert (estimate >= data.scores * min(chance, 0.999) - 1e-6).all()


def test_a_better_model_is_trusted_more(router: PromptRouter) -> None:
    strong, weak, middle = router.predict(asked([[1, 1, 1]], [0.1]))[0]
    assert strong > middle > weak


def test_without_the_chance_of_a_guess_it_refuses(router: PromptRouter) -> None:
    with pytest.raises(InputError, match="'chance' column"):
        router.predict(asked([[1, 1, 1]], None))
