from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crossroads.core.errors import InputError
from crossroads.gateway.evaluation.reward_model import expected_rewards
from tests.gateway.evaluation.logs import make_log, replayed, world


@pytest.mark.parametrize("with_features", [False, True])
def test_no_call_sees_its_own_reward(with_features: bool) -> None:
    log, _ = replayed(np.random.default_rng(0), 200, with_features=with_features)
    before, kind = expected_rewards(log)
    assert kind == ("ridge" if with_features else "mean")
    reward = log.reward.copy()
    reward[17] = 1 - reward[17]
    after, _ = expected_rewards(replace(log, reward=reward))
    np.testing.assert_allclose(after[17], before[17], atol=1e-6)
    assert not np.allclose(after, before)


def test_calls_of_one_session_do_not_see_each_other() -> None:
    log, _ = replayed(np.random.default_rng(0), 200)
    session = log.session.copy()
    session[:10] = "one"
    log = replace(log, session=session)
    before, _ = expected_rewards(log)
    reward = log.reward.copy()
    reward[3] = 1 - reward[3]
    after, _ = expected_rewards(replace(log, reward=reward))
    np.testing.assert_allclose(after[:10], before[:10])


def test_a_ridge_predicts_better_than_means() -> None:
    log, _ = replayed(np.random.default_rng(1), 3000, with_features=True)
    rows = np.arange(len(log)), log.action
    error = {
        kind: np.square(expected_rewards(log, kind=kind)[0][rows] - log.reward).mean()
        for kind in ("ridge", "mean")
    }
    assert error["ridge"] < error["mean"]


def test_means_come_to_the_models_true_means() -> None:
    log, _ = replayed(np.random.default_rng(2), 4000, epsilon=1.0)
    expected, _ = expected_rewards(log, kind="mean")
    np.testing.assert_allclose(expected.mean(axis=0), world().score.mean(axis=0), atol=0.06)


def test_what_the_kind_needs_is_said() -> None:
    log = make_log([0, 1, 0], np.full((3, 2), 0.5), [1, 0, 1])
    with pytest.raises(InputError, match="needs the embedding"):
        expected_rewards(log, kind="ridge")
    with pytest.raises(InputError, match="no estimates"):
        expected_rewards(log, kind="scores")
