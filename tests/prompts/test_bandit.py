from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.bandit import LinearArms
from crossroads.prompts.router import TrainingSet
from tests.prompts.routers.tables import change, outcomes


def arms(data: TrainingSet, *, components: int = 4, penalty: float = 2.0) -> LinearArms:
    return LinearArms.start(
        data.embeddings, len(data.models), components=components, penalty=penalty
    )


def best_mean(expected: np.ndarray, width: np.ndarray) -> np.ndarray:
    return expected + 0.2 * width


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 30), st.floats(0.1, 10))
def test_observing_one_by_one_is_ridge_regression(seed: int, steps: int, penalty: float) -> None:
    data = outcomes(40, 2, seed=seed)
    bandit = arms(data, penalty=penalty)
    z = bandit.features(data.embeddings)
    for row in range(steps):
        bandit.observe(z[row], row % 2, float(data.scores[row, row % 2]))
    for arm in range(2):
        rows = np.arange(arm, steps, 2)
        gram = z[rows].T @ z[rows] + penalty * np.eye(z.shape[1])
        theta = np.linalg.solve(gram, z[rows].T @ data.scores[rows, arm])
        np.testing.assert_allclose(bandit.weights()[arm], theta, atol=1e-8)
        expected, width = bandit.judge(z[-1])
        assert expected[arm] == pytest.approx(z[-1] @ theta, abs=1e-8)
        assert width[arm] == pytest.approx(np.sqrt(z[-1] @ np.linalg.solve(gram, z[-1])))


def test_features_are_principal_axes_and_a_constant() -> None:
    data = outcomes(200)
    z = arms(data, components=3).features(data.embeddings)
    np.testing.assert_array_equal(z[:, -1], 1.0)
    np.testing.assert_allclose(z[:, :-1].mean(axis=0), 0.0, atol=1e-9)
    assert np.square(z[:, :-1]).sum(axis=1).mean() == pytest.approx(1.0)
    covariance = np.cov(z[:, :-1].T)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-9)


def test_only_the_chosen_score_is_ever_looked_at() -> None:
    data = outcomes(100, 3, missing=0.2)
    seen: list[tuple[int, float]] = []

    class Spy(LinearArms):
        def observe(self, z_P: np.ndarray, arm: int, reward: float) -> None:
            seen.append((arm, reward))
            super().observe(z_P, arm, reward)

    first = Spy.start(data.embeddings, 3, components=4, penalty=1.0)
    rewards = first.replay(data, best_mean, np.random.default_rng(0))
    # Every score that was not revealed is changed; nothing else may follow from that.
    order = np.random.default_rng(0).permutation(100)
    other = 1 - data.scores
    for row, (arm, reward) in zip(order, seen, strict=True):
        assert reward == data.scores[row, arm]
        other[row, arm] = data.scores[row, arm]
    again = arms(data, penalty=1.0)
    changed = again.replay(change(data, scores=other), best_mean, np.random.default_rng(0))
    np.testing.assert_array_equal(changed, rewards)
    np.testing.assert_array_equal(again.weights(), first.weights())


def test_a_prompt_no_model_was_run_on_gives_no_reward() -> None:
    data = outcomes(30)
    data.scores[3] = np.nan
    rewards = arms(data).replay(data, best_mean, np.random.default_rng(0))
    assert np.isnan(rewards).sum() == 1


def test_what_was_handed_out_does_not_follow_later_rewards() -> None:
    data = outcomes(30)
    bandit = arms(data)
    state = bandit.state()
    bandit.feed(data.models, data.embeddings[0], "model-1", 1.0)
    assert not state["moment"].any()
    copy = LinearArms.restore(state)
    copy.feed(data.models, data.embeddings[0], "model-1", 1.0)
    assert not state["moment"].any()
    np.testing.assert_array_equal(copy.weights(), bandit.weights())


def test_wrong_observations_are_refused() -> None:
    data = outcomes(30)
    bandit = arms(data)
    with pytest.raises(UsageError, match="did you mean 'model-1'"):
        bandit.feed(data.models, data.embeddings[0], "model1", 1.0)
    for reward in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match=r"expected a reward in \[0, 1\]"):
            bandit.feed(data.models, data.embeddings[0], "model-1", reward)
    for embedding in (np.ones(3), np.full(16, np.nan), np.ones((2, 16))):
        with pytest.raises(InputError, match="expected an embedding of 16 finite numbers"):
            bandit.feed(data.models, embedding, "model-1", 1.0)
    assert not bandit.moment.any()
