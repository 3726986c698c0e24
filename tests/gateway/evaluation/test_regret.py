from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossroads.core.errors import InputError
from crossroads.gateway.evaluation import EvaluationSettings
from crossroads.gateway.evaluation.regret import anytime_factor, live_regret, regret_of_ledger
from crossroads.gateway.ledger import Feedback, LedgerReader, LedgerSettings, open_ledger
from tests.gateway.evaluation.logs import make_log
from tests.gateway.ledger.records import record

TRUTH = np.array([0.5, 0.8, 0.3])


def log(n: int, *, seed: int = 0, epsilon: float = 0.6, favourite: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    probability = np.full((n, 3), epsilon / 3)
    probability[:, favourite] += 1 - epsilon
    action = (probability.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return make_log(action, probability, rng.random(n) < TRUTH[action])


def test_the_best_fixed_model_and_the_regret_are_found() -> None:
    of = log(4000)
    found = live_regret(of)
    assert found["best_model"] == "b"
    assert "at every look as long as every log begins with the same call" in found["method"]
    true_regret = 0.8 - float(of.probability[0] @ TRUTH)
    assert found["low"] < true_regret < found["high"]
    assert found["regret"] == pytest.approx(true_regret, abs=0.05)
    assert json.loads(json.dumps(found)) == found


def test_a_policy_that_beats_every_model_has_negative_regret() -> None:
    rng = np.random.default_rng(0)
    n = 3000
    kind = rng.integers(2, size=n)  # the policy knows which of two models solves the call
    probability = np.where(kind[:, None] == np.arange(2), 0.9, 0.1)
    action = (probability.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    found = live_regret(make_log(action, probability, action == kind))
    assert found["high"] < 0


@pytest.mark.slow
def test_the_sequence_covers_the_truth_at_every_look_at_once() -> None:
    truth = TRUTH.max() - float(log(2).probability[0] @ TRUTH)
    missed = 0
    for seed in range(100):
        whole = log(1500, seed=seed)
        for looked in (100, 200, 400, 800, 1500):
            part = whole.take(np.arange(looked))
            found = live_regret(replace(part, dropped={}))
            if not found["low"] <= truth <= found["high"]:
                missed += 1
                break
    assert missed <= 5 + 2 * 3  # 5 in 100, and binomial chance


def test_watching_costs_a_wider_interval() -> None:
    assert anytime_factor(500, 0.05) > 1.96
    assert anytime_factor(500, 0.05) < 3.5
    assert anytime_factor(500, 0.01) > anytime_factor(500, 0.05)


def test_models_that_are_not_explored_are_named_and_nothing_is_claimed_of_them() -> None:
    rng = np.random.default_rng(0)
    probability = np.tile([0.5, 0.5, 0.0], (500, 1))
    found = live_regret(make_log(rng.integers(2, size=500), probability, rng.random(500)))
    assert found["unsupported"] == ["c"]
    assert found["best_model"] in ("a", "b")


def test_without_exploration_only_the_served_model_is_known() -> None:
    certain = np.tile([1.0, 0.0], (50, 1))
    found = live_regret(make_log(np.zeros(50, int), certain, np.ones(50)))
    assert found["regret"] == 0.0
    assert found["unsupported"] == ["b"]


def test_few_calls_say_nothing() -> None:
    found = live_regret(log(10))
    assert found["regret"] is None
    assert "at least 30" in found["why"]


def test_a_wrong_level_is_refused() -> None:
    with pytest.raises(InputError):
        live_regret(log(100), level=1.0)


@pytest.mark.parametrize("reward", ["feedback", "complete"])
def test_the_regret_of_a_ledger_is_of_its_window(tmp_path: Path, reward: Any) -> None:
    url = f"sqlite:{tmp_path}/l.db"
    ledger = open_ledger(LedgerSettings(url=url))
    chance = random.Random(0)
    for n in range(400):
        model = chance.choice(["small", "large"])
        old = n >= 300
        row = record(
            f"d{n}",
            time=time.time() - (7_200 if old else 60),
            chosen=model,
            propensity=0.5,
            probabilities={"small": 0.5, "large": 0.5},
            is_complete=model == "large",
        )
        ledger.append(row)
        score = 0.9 if model == "large" else 0.4
        ledger.append_feedback(Feedback(decision_id=f"d{n}", score=score, time=row.time + 1))
    ledger.close()
    settings = EvaluationSettings(window_hours=1, reward=reward)
    with LedgerReader(url) as reader:
        found = regret_of_ledger(reader, settings)
        nothing = regret_of_ledger(reader, settings, policy="other")
    assert found["calls"] == 300
    assert found["best_model"] == "large"
    for of_window in (found, nothing):
        assert "at each single look" in of_window["method"]  # the window slides
    assert found["low"] > 0
    assert nothing["regret"] is None
    assert "no call to learn from" in nothing["why"]
