from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import ks_2samp

from crossroads.gateway.policies.drift import Drift, ks_statistic
from crossroads.gateway.policies.estimates import Estimate, Estimates
from crossroads.gateway.policies.settings import DriftSettings
from crossroads.prompts.fitted import FittedRouter
from crossroads.prompts.verification import Verification
from tests.gateway.policies.conftest import LEARNED, call, choose, compiled, stub


def seen(rows: npt.NDArray[Any]) -> list[Estimate]:
    return [Estimate(np.zeros(3), None, row.astype(np.float32)) for row in rows]


def directions(rng: np.random.Generator, count: int, centre: int) -> npt.NDArray[Any]:
    """Return unit vectors around one axis of 16."""
    rows = 0.15 * rng.standard_normal((count, 16))
    rows[:, centre] += 1
    found: npt.NDArray[Any] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def test_the_statistic_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for size in (5, 40, 300):
        one, other = np.sort(rng.random(size)), rng.random(70) ** 1.3
        assert ks_statistic(one, other) == pytest.approx(ks_2samp(one, other).statistic)


def test_prompts_like_the_first_raise_no_alarm_and_others_do() -> None:
    rng = np.random.default_rng(1)
    drift = Drift(stub(), DriftSettings(window=100, reference=400))
    assert drift.state()["state"] == "learning"
    drift.seen(seen(directions(rng, 400, 0)))
    drift.seen(seen(directions(rng, 1000, 0)))
    quiet = drift.state()
    assert (quiet["state"], quiet["source"], quiet["windows"]) == ("ok", "first", 10)
    assert quiet["alarms"] == 0
    drift.seen(seen(directions(rng, 100, 5)))
    loud = drift.state()
    assert (loud["state"], loud["alarms"]) == ("alarm", 1)
    assert loud["last"]["mean"] < loud["last"]["reference_mean"]


def test_without_drift_windows_alarm_no_more_often_than_stated() -> None:
    """A rate of 0.05 over 400 windows of fresh references: at most 35 alarms (p < 0.001)."""
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(20):
        drift = Drift(stub(), DriftSettings(window=50, reference=200, false_alarms=0.05))
        drift.seen(seen(directions(rng, 200, 0)))
        drift.seen(seen(directions(rng, 20 * 50, 0)))
        assert drift.num_windows == 20
        alarms += drift.num_alarms
    assert alarms <= 35


def test_training_prompts_in_the_artefact_are_the_reference(knn: FittedRouter) -> None:
    drift = Drift(knn, DriftSettings(window=50))
    estimates = Estimates(knn)
    drift.seen(estimates.estimate([f"{'zxq wv ' * 3}{n} lorem ipsum dolor {n}" for n in range(50)]))
    assert drift.state()["source"] == "training"
    assert drift.state()["state"] == "alarm"


def test_the_verifiers_distance_is_watched_where_there_is_one(calibrated: FittedRouter) -> None:
    drift = Drift(calibrated, DriftSettings(window=20))
    estimates = Estimates(calibrated)
    drift.seen(estimates.estimate([f"zzz unheard {n} of gibberish qqq" for n in range(20)]))
    told = drift.state()
    assert (told["source"], told["state"]) == ("sdm", "alarm")


def test_a_policy_watches_what_it_decides_and_says_so_in_health(knn: FittedRouter) -> None:
    section = {"auto": {**LEARNED, "drift": {"window": 20}}}
    policies = compiled(section, router=knn, models=knn.pool)
    choose(policies, *(call(text=f"gibberish zzz {n} qqq") for n in range(20)))
    told = policies.health()["policies"]["auto"]["drift"]
    assert (told["prompts"], told["windows"]) == (20, 1)
    choose(policies, *(call(text=f"gibberish zzz {n} qqq") for n in range(20)))
    assert policies.health()["policies"]["auto"]["drift"]["prompts"] == 20  # remembered ones


def balanced_artefact(rng: np.random.Generator, metrics: dict[str, Any]) -> Any:
    """Return what the watch reads of a calibrated router: as many right as wrong choices."""
    label = np.repeat([0, 1], 300)
    half = SimpleNamespace(label=label, distance=distances(rng, label == 1))
    verifier = SimpleNamespace(
        verifier=SimpleNamespace(estimators=[SimpleNamespace(calibration=half)])
    )
    return SimpleNamespace(verifier=verifier, metrics=metrics)


def distances(rng: np.random.Generator, is_right: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Right choices are about prompts nearer to the calibrated ones."""
    found: npt.NDArray[Any] = np.where(
        is_right, rng.beta(4, 2, len(is_right)), rng.beta(1, 3, len(is_right))
    )
    return found


def verified(rng: np.random.Generator, count: int, right: float) -> list[Estimate]:
    def estimate(distance: float) -> Estimate:
        verification = Verification(
            answer="accept",
            prediction=1,
            probability=1.0,
            similarity=1,
            distance=distance,
            level=0.9,
        )
        return Estimate([0.0], None, None, verification=verification)

    return [estimate(float(d)) for d in distances(rng, rng.random(count) < right)]


@pytest.mark.parametrize("source", ["sdm", "sdm-first"])
def test_a_calibrated_router_raises_no_alarm_over_the_mix_it_was_measured_on(source: str) -> None:
    """85 % right in traffic, half in the calibration; 0.05 of 400 windows: at most 35 alarms."""
    rng = np.random.default_rng(3)
    alarms, right = 0, 0.85
    for _ in range(20):
        metrics = {}
        if source == "sdm":
            told = float((rng.random(500) < right).mean())
            metrics = {"verification": {"right": told, "num_test": 500}}
        settings = DriftSettings(window=50, reference=200, false_alarms=0.05)
        drift = Drift(balanced_artefact(rng, metrics), settings)
        assert drift.state()["source"] == source
        if source == "sdm-first":
            drift.seen(verified(rng, 200, right))
        assert drift.num_windows == 0
        drift.seen(verified(rng, 20 * 50, right))
        assert drift.num_windows == 20
        alarms += drift.num_alarms
        drift.seen(verified(rng, 50, 0.3))  # many more that it gets wrong
        assert drift.state()["state"] == "alarm"
    assert alarms <= 35


def test_a_watch_that_is_taken_over_shares_nothing_with_the_one_before() -> None:
    rng = np.random.default_rng(4)
    settings = DriftSettings(window=20, reference=100)
    before, after = Drift(stub(), settings), Drift(stub(), settings)
    before.seen(seen(directions(rng, 50, 0)))
    after.adopt(before)
    before.seen(seen(directions(rng, 49, 0)))
    after.seen(seen(directions(rng, 49, 0)))
    assert after.state()["state"] == "learning"  # 99 of its own
    after.seen(seen(directions(rng, 1, 0)))
    after.seen(seen(directions(rng, 19, 0)))
    again = Drift(stub(), settings)
    again.adopt(after)
    after.seen(seen(directions(rng, 1, 0)))
    assert (after.num_windows, again.num_windows) == (1, 0)
    again.seen(seen(directions(rng, 1, 0)))
    assert again.num_windows == 1
