from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import InputError
from crossroads.core.statistics import bootstrap_interval, summarise
from crossroads.gateway.evaluation.intervals import Interval, Terms, clusters, intervals


def test_the_interval_of_a_plain_mean_is_students() -> None:
    values = np.random.default_rng(0).random(40)
    found = intervals({"m": Terms(values)}, np.arange(40), draws=2000)["m"]
    wanted = summarise(list(values))
    assert (found.value, found.low, found.high) == pytest.approx(
        (wanted.mean, wanted.low, wanted.high)
    )
    low, high = bootstrap_interval(values)
    assert found.bootstrap_low == pytest.approx(low, abs=0.01)
    assert found.bootstrap_high == pytest.approx(high, abs=0.01)


def test_the_interval_of_a_ratio_follows_its_influence() -> None:
    rng = np.random.default_rng(1)
    num, den = rng.random(2000), 0.5 + rng.random(2000)
    found = intervals({"r": Terms(np.zeros(2000), num, den)}, np.arange(2000), draws=2000)["r"]
    assert found.value == pytest.approx(num.sum() / den.sum())
    assert found.low == pytest.approx(found.bootstrap_low, abs=0.002)
    assert found.high == pytest.approx(found.bootstrap_high, abs=0.002)


def test_one_session_gives_no_interval() -> None:
    found = intervals({"m": Terms(np.array([0.0, 1.0]))}, np.zeros(2, dtype=np.int64))["m"]
    assert found == Interval(0.5)


def test_weights_of_nothing_give_no_estimate() -> None:
    zero = np.zeros(5)
    found = intervals({"r": Terms(zero, zero, zero)}, np.arange(5), draws=10)["r"]
    assert found == Interval(None)


@pytest.mark.parametrize(("level", "draws"), [(0.0, 1), (1.0, 1), (0.9, -1)])
def test_wrong_arguments_are_refused(level: float, draws: int) -> None:
    with pytest.raises(InputError):
        intervals({"m": Terms(np.ones(3))}, np.arange(3), level=level, draws=draws)


def test_sessions_are_numbered_in_order() -> None:
    assert clusters(["b", "a", "b"]).tolist() == [0, 1, 0]
