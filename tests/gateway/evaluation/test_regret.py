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


def test_a_model_that_is_not_explored_might_be_best_so_nothing_is_claimed() -> None:
    rng = np.random.default_rng(0)
    probability = np.tile([0.5, 0.5, 0.0], (500, 1))
    scored = np.full((500, 3), 0.5)
    of = make_log(rng.integers(2, size=500), probability, rng.random(500), score=scored)
    found = live_regret(of)
    assert found["unsupported"] == ["c"]
    assert (found["regret"], found["best_model"]) == (None, None)
    assert "not 100 % to c" in found["why"]
    assert "widen explore's margin" in found["why"]
    assert {each["model"]: each["value"] is None for each in found["models"]} == {
        "a": False,
        "b": False,
        "c": True,
    }
    priced = replace(of, score=np.full((500, 3), np.nan))  # c is only known to have a price
    assert live_regret(priced)["best_model"] in ("a", "b")


def test_without_exploration_the_advice_is_to_explore() -> None:
    certain = np.tile([1.0, 0.0], (50, 1))
    scored = np.full((50, 2), 0.5)
    found = live_regret(make_log(np.zeros(50, int), certain, np.ones(50), score=scored))
    assert found["regret"] is None
    assert found["unsupported"] == ["b"]
    assert "add explore" in found["why"]


@pytest.mark.parametrize("forced", [1, 30])
def test_a_few_calls_without_a_choice_do_not_turn_the_regret(forced: int) -> None:
    of = log(4000)
    before = live_regret(of)
    certain = of.probability.copy()
    certain[:forced] = [1.0, 0.0, 0.0]
    action, propensity = of.action.copy(), of.propensity.copy()
    action[:forced], propensity[:forced] = 0, 1.0
    found = live_regret(replace(of, probability=certain, action=action, propensity=propensity))
    assert found["best_model"] == before["best_model"]
    assert found["regret"] == pytest.approx(before["regret"], abs=0.02)
    assert (found["calls"], found["left_out"]) == (4000 - forced, forced)


def test_the_regret_is_of_calls_that_every_model_might_answer() -> None:
    of = log(4000)
    eligible = np.ones((4000, 3), dtype=bool)
    eligible[:2000, 1] = False  # an image, say
    only = of.probability.copy()
    only[:2000, 1] = 0.0
    only[:2000] /= only[:2000].sum(axis=1, keepdims=True)
    rows = np.arange(4000)
    action = np.where(eligible[rows, of.action], of.action, 0)
    changes = {"propensity": only[rows, action], "eligible": eligible, "action": action}
    found = live_regret(replace(of, probability=only, **changes))
    assert (found["calls"], found["left_out"]) == (2000, 2000)
    assert found["best_model"] == "b"
    none = live_regret(replace(of, eligible=np.zeros((4000, 3), dtype=bool)))
    assert "0 judged calls that every model might answer" in none["why"]


def test_a_ledger_without_judgements_says_what_is_missing(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/l.db"
    ledger = open_ledger(LedgerSettings(url=url))
    ledger.append(record("d1", time=time.time()))
    ledger.close()
    with LedgerReader(url) as reader:
        judged = regret_of_ledger(reader, EvaluationSettings())
        complete = regret_of_ledger(reader, EvaluationSettings(reward="complete"))
    assert "no judged call in the last 24 hours; send feedback" in judged["why"]
    assert "evaluation.reward" in judged["why"]
    assert complete["calls"] == 1


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
