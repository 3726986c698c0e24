"""Estimates on replayed traffic whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from crossroads.core.errors import InputError
from crossroads.gateway.evaluation import FixedModel, Target, Uniform, off_policy
from crossroads.gateway.evaluation.estimators import ESTIMATORS, UNBIASED, overlap, terms
from crossroads.gateway.evaluation.intervals import asymptotic, bootstrap
from crossroads.gateway.evaluation.off_policy import LEFT_OUT, _widened
from crossroads.gateway.evaluation.reward_model import expected_rewards
from crossroads.gateway.evaluation.support import supported_models
from tests.gateway.evaluation.logs import make_log, replayed, world

REPEATS = 250
CALLS = 1500


@pytest.fixture(scope="module")
def repeats() -> dict[str, Any]:
    """Estimates of the candidate's value, and their intervals, on 250 replayed logs."""
    found: dict[str, Any] = {name: {"value": [], "t": [], "boot": []} for name in ESTIMATORS}
    rng = np.random.default_rng(7)
    for _ in range(REPEATS):
        log, target = replayed(rng, CALLS)
        expected, _ = expected_rewards(log)
        met = overlap(
            target.probability, log.action, log.propensity, supported_NK=supported_models(log)
        )
        number = np.arange(CALLS)
        parts = {n: terms(n, met, log.reward, expected, clip=np.inf) for n in UNBIASED}
        resampled = bootstrap(parts, number, level=0.95, draws=200, seed=0)
        for name, of in parts.items():
            found[name]["value"].append(of.value)
            found[name]["t"].append(asymptotic(of, number, 0.95))
            found[name]["boot"].append(resampled[name])
    return found


def share_covered(intervals: list[tuple[float, float]]) -> float:
    truth = world().truth
    return float(np.mean([low <= truth <= high for low, high in intervals]))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", UNBIASED)
@pytest.mark.parametrize("kind", ["t", "boot"])
def test_intervals_cover_the_truth_of_replayed_traffic_95_times_in_100(
    repeats: dict[str, Any], estimator: str, kind: str
) -> None:
    # percentiles of 200 draws are a little narrow: a true coverage of 93 % is accepted as 95 %
    low, high = binom.ppf([0.001, 0.999], REPEATS, [0.93, 0.95]) / REPEATS
    assert low <= share_covered(repeats[estimator][kind]) <= high


@pytest.mark.slow
@pytest.mark.parametrize("estimator", UNBIASED)
def test_estimates_are_unbiased_on_replayed_traffic(
    repeats: dict[str, Any], estimator: str
) -> None:
    values = np.array(repeats[estimator]["value"])
    error = values.std() / np.sqrt(REPEATS)
    assert abs(values.mean() - world().truth) < 4 * error


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["snips", "dr"])
def test_snips_and_dr_vary_less_than_ips(repeats: dict[str, Any], estimator: str) -> None:
    assert np.std(repeats[estimator]["value"]) < 0.8 * np.std(repeats["ips"]["value"])


def test_wrong_propensities_bias_ips_and_are_noticed() -> None:
    rng = np.random.default_rng(3)
    values = []
    for _ in range(20):
        log, target = replayed(rng, CALLS)
        wrong = replace(log, propensity=np.minimum(1.0, 2 * log.propensity))
        values.append(off_policy(wrong, target, draws=0).value["ips"].value or 0.0)
    bias = np.mean(values) - world().truth
    assert bias < -5 * np.std(values) / np.sqrt(len(values))
    found = off_policy(wrong, target, draws=0)
    assert any("propensities" in warning for warning in found.warnings)


def test_right_propensities_raise_no_warning() -> None:
    log, target = replayed(np.random.default_rng(4), CALLS)
    assert off_policy(log, target, draws=0).warnings == ()


def test_a_ridge_on_embeddings_is_the_default_and_dr_uses_it() -> None:
    log, target = replayed(np.random.default_rng(5), CALLS, with_features=True)
    found = off_policy(log, target, draws=50)
    assert found.reward_model == "ridge"
    interval = found.value["dr"]
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low < world().truth < interval.high  # of one seed; coverage is tested above


def test_the_difference_is_paired_call_by_call() -> None:
    log, target = replayed(np.random.default_rng(6), CALLS)
    found = off_policy(log, target, draws=0)
    gain, value = found.difference["dr"], found.value["dr"]
    served = found.served
    assert gain.value == pytest.approx(value.value - served.value)  # type: ignore[operator]
    assert found.num_calls == CALLS


def test_cost_under_the_candidate_is_estimated_and_known_by_price() -> None:
    log, target = replayed(np.random.default_rng(8), CALLS)
    found = off_policy(log, target, draws=0)
    assert found.expected_cost is not None
    exact = (target.probability * log.price).sum(axis=1).mean()
    assert found.expected_cost.value == pytest.approx(exact)
    dr = found.cost["dr"]
    assert dr.value == pytest.approx(exact)  # the model of the cost is exact here
    ips = found.cost["ips"]
    assert ips.low is not None
    assert ips.high is not None
    assert ips.low < exact < ips.high


# --- identities ----------------------------------------------------------------------------------


@st.composite
def logs(draw: st.DrawFn) -> Any:
    n, k = draw(st.integers(2, 30)), draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    probability = rng.dirichlet(np.ones(k), size=n) * 0.9 + 0.1 / k
    action = (probability.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return make_log(action, probability, rng.random(n), models=tuple("abcd"[:k]))


@settings(max_examples=40, deadline=None)
@given(logs())
def test_the_served_policy_itself_is_worth_what_it_earned(log: Any) -> None:
    target = Target(name="served", models=log.models, probability=log.probability)
    found = off_policy(log, target, draws=0)
    for name in ("ips", "snips", "clipped_ips"):
        assert found.value[name].value == pytest.approx(log.reward.mean())
        assert found.difference[name].value == pytest.approx(0.0, abs=1e-12)
    assert found.effective_size == pytest.approx(len(log))
    assert found.unsupported == 0


@settings(max_examples=40, deadline=None)
@given(logs(), st.floats(0.1, 0.9))
def test_snips_follows_a_shift_of_the_rewards(log: Any, shift: float) -> None:
    target = Uniform().target(log)
    halved = replace(log, reward=log.reward * 0.1)
    shifted = replace(halved, reward=halved.reward + shift)
    before = off_policy(halved, target, draws=0).value["snips"].value
    after = off_policy(shifted, target, draws=0).value["snips"].value
    assert before is not None
    assert after == pytest.approx(before + shift)


@settings(max_examples=40, deadline=None)
@given(logs())
def test_dr_is_exact_where_the_reward_model_is(log: Any) -> None:
    quality = np.random.default_rng(0).random(log.probability.shape)
    exact = replace(log, reward=quality[np.arange(len(log)), log.action])
    probability = Uniform().target(log).probability
    target = Target(name="t", models=log.models, probability=probability, quality=quality)
    found = off_policy(exact, target, reward_model="scores", draws=0)
    assert found.value["dr"].value == pytest.approx((probability * quality).sum(axis=1).mean())


@settings(max_examples=30, deadline=None)
@given(logs())
def test_an_evaluation_is_plain_data(log: Any) -> None:
    plain = off_policy(log, Uniform(), draws=10).to_dict()
    assert json.loads(json.dumps(plain)) == plain


# --- support -------------------------------------------------------------------------------------


def test_choices_the_log_never_makes_are_refused_with_bounds() -> None:
    rng = np.random.default_rng(0)
    certain = np.tile([1.0, 0.0], (400, 1))
    log = make_log(np.zeros(400, int), certain, rng.random(400) < 0.7)
    found = off_policy(log, FixedModel("b"), draws=100)
    assert found.is_refused
    assert found.unsupported == 1.0
    assert all(each.value is None for each in found.value.values())
    assert found.bounds["dr"] == (0.0, 1.0)
    assert "zero propensity" in found.warnings[0]


def test_bounds_hold_the_truth_where_part_of_the_choices_is_unsupported() -> None:
    rng = np.random.default_rng(1)
    n = 2000
    explored = rng.random(n) < 0.5  # the others always go to a
    probability = np.where(explored[:, None], [[0.5, 0.5]], [[1.0, 0.0]])
    action = (probability.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    quality = np.stack([np.full(n, 0.4), np.where(explored, 0.9, 0.2)], axis=1)
    reward = rng.random(n) < quality[np.arange(n), action]
    found = off_policy(make_log(action, probability, reward), FixedModel("b"), draws=200)
    assert found.unsupported == pytest.approx((~explored).mean())
    for name in ("ips", "dr"):
        low, high = found.bounds[name]
        assert low < quality[:, 1].mean() < high
        assert high - low < 0.65  # half of the choices are known


def one_call_without_a_choice(n: int, forced: int) -> Any:
    rng = np.random.default_rng(2)
    probability = np.where(np.arange(n)[:, None] < forced, [[1.0, 0.0]], [[0.5, 0.5]])
    action = (probability.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return make_log(action, probability, rng.random(n) < np.where(action == 1, 0.6, 0.4))


def test_a_few_unsupported_calls_are_left_out_and_counted_not_a_refusal() -> None:
    found = off_policy(one_call_without_a_choice(2000, 2), FixedModel("b"), draws=0)
    assert not found.is_refused
    assert (found.num_calls, found.dropped[LEFT_OUT]) == (1998, 2)
    assert found.value["snips"].value == pytest.approx(0.6, abs=0.05)
    assert [w for w in found.warnings if "2 of 2000 calls are left out" in w]
    many = off_policy(one_call_without_a_choice(2000, 200), FixedModel("b"), draws=0)
    assert many.is_refused
    assert LEFT_OUT not in many.dropped
    assert "10 % of the candidate's choices have zero propensity" in many.warnings[0]


def rarely(rewards: Any, *, explored: int, rare: int = 5) -> Any:
    """200 calls; on the last few, b has propensity 0.01, and was chosen ``explored`` times."""
    probability = np.tile([0.99, 0.01], (200, 1))
    probability[: 200 - rare] = [1.0, 0.0]
    action = np.zeros(200, int)
    action[200 - explored :] = 1
    return make_log(action, probability, rewards)


def own_choice(log: Any) -> Target:
    """b on the last 5 calls, as served on the others."""
    probability = np.tile([1.0, 0.0], (200, 1))
    probability[195:] = [0.0, 1.0]
    return Target(name="own", models=log.models, probability=probability)


@pytest.mark.parametrize("explored", [0, 1])
def test_a_difference_that_rests_on_few_observed_choices_is_warned_of(explored: int) -> None:
    log = rarely(np.linspace(0, 1, 200), explored=explored)
    found = off_policy(log, own_choice(log), draws=0)
    known = found.support
    assert (known.differing, known.observed, known.effective_size) == (5, explored, explored)
    (told,) = [w for w in found.warnings if "less than half as likely" in w]
    assert "on 5 of 200 calls" in told
    assert f"was seen on {explored} of them" in told
    assert found.to_dict()["support"]["observed"] == explored


def test_choices_that_were_often_seen_are_not_warned_of() -> None:
    log, target = replayed(np.random.default_rng(4), CALLS)
    known = off_policy(log, target, draws=0).support
    served = log.probability.argmax(axis=1)
    wanted = target.probability.argmax(axis=1)
    assert known.differing == int((served != wanted).sum())
    assert known.observed == int(((served != wanted) & (log.action == wanted)).sum())
    assert known.observed > 30


@settings(max_examples=40, deadline=None)
@given(logs())
def test_the_served_policy_differs_from_itself_nowhere(log: Any) -> None:
    target = Target(name="served", models=log.models, probability=log.probability)
    assert off_policy(log, target, draws=0).support.differing == 0
    unknown = replace(log, probability=np.full(log.probability.shape, np.nan))
    for found in (off_policy(log, Uniform(), draws=0), off_policy(unknown, Uniform(), draws=0)):
        assert 0 <= found.support.observed <= found.support.differing <= len(log)


def test_rare_choices_that_chance_left_out_do_not_accuse_the_propensities() -> None:
    log = rarely(np.linspace(0, 1, 200), explored=0, rare=100)
    found = off_policy(log, Uniform(), draws=0)
    assert found.weights["mean"] < 0.9 * (1 - found.unsupported)
    assert not [w for w in found.warnings if "propensities are not those" in w]


def test_a_model_only_the_candidate_knows_has_no_support() -> None:
    log = make_log([0, 1], [[0.5, 0.5], [0.5, 0.5]], [1.0, 0.0])
    probability = np.array([[0.0, 0.5, 0.5], [0.0, 0.5, 0.5]])
    target = Target(name="t", models=(*log.models, "new"), probability=probability)
    found = off_policy(log, target, draws=0)
    assert found.unsupported == 0.5
    partly = replace(log, eligible=np.array([[True, False], [True, True]]))
    wide = _widened(partly, target.models)
    assert wide.eligible is not None
    assert wide.eligible.tolist() == [[True, False, True], [True, True, True]]


def test_with_propensities_alone_every_model_ever_chosen_is_supported() -> None:
    log = make_log([0, 1, 0, 1], np.full((4, 3), 1 / 3), [1, 0, 1, 0])
    unknown = replace(log, probability=np.full((4, 3), np.nan))
    assert off_policy(unknown, FixedModel("b"), draws=0).unsupported == 0
    assert off_policy(unknown, FixedModel("c"), draws=0).unsupported == 1


def test_calls_of_one_session_count_as_one() -> None:
    log, target = replayed(np.random.default_rng(9), 300)
    twice = log.take(np.repeat(np.arange(300), 2))
    doubled = Target(
        name="t", models=target.models, probability=np.repeat(target.probability, 2, axis=0)
    )
    one = off_policy(log, target, draws=0).value["ips"]
    two = off_policy(twice, doubled, draws=0).value["ips"]
    assert two.low == pytest.approx(one.low)
    assert two.high == pytest.approx(one.high)


def test_few_effective_calls_are_warned_of() -> None:
    log, target = replayed(np.random.default_rng(1), 60)
    assert any("too few" in warning for warning in off_policy(log, target).warnings)


def test_rewards_that_never_differ_are_warned_of() -> None:
    rng = np.random.default_rng(0)
    action = rng.integers(2, size=400)
    log = make_log(action, np.full((400, 2), 0.5), np.where(action == 1, 1.0, rng.random(400)))
    warnings = off_policy(log, FixedModel("b"), draws=0).warnings
    assert len(warnings) == 1
    assert "same reward, 1" in warnings[0]


def test_an_empty_log_is_refused() -> None:
    log = make_log([0, 1], [[0.5, 0.5]] * 2, [1, 0])
    with pytest.raises(InputError, match="empty"):
        off_policy(log.take(np.zeros(2, bool)), Uniform())
