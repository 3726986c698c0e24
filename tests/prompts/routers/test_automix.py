from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.routers import build_router, router_class
from crossroads.prompts.routers.automix import best_cut, evidence_of
from tests.prompts.routers.tables import argmax_quality, change, outcomes, queries


def test_evidence_is_the_ratio_of_what_right_and_wrong_models_get() -> None:
    rng = np.random.default_rng(0)
    votes = rng.integers(0, 3, size=500)
    scores = (rng.random((500, 2)) < 0.2 + 0.3 * votes[:, None]).astype(np.float32)
    found = evidence_of(votes, scores, 3, shrink=0.0)
    for value in range(3):
        for k in range(2):
            right, wrong = scores[:, k] == 1, scores[:, k] == 0
            expected = np.log((votes[right] == value).mean() / (votes[wrong] == value).mean())
            assert found[value, k] == pytest.approx(expected, abs=1e-6)


def test_votes_never_seen_are_no_evidence() -> None:
    data = outcomes(50, missing=0.3)
    found = evidence_of(np.zeros(50, dtype=np.intp), data.scores, 4, shrink=5.0)
    np.testing.assert_allclose(found, 0.0, atol=1e-9)


def test_the_cut_sends_each_side_to_its_best_model() -> None:
    votes = np.repeat(np.arange(9), 10)
    scores = np.column_stack([votes >= 6, votes < 6]).astype(np.float32)
    assert best_cut(votes, scores, samples=8) == 6


@pytest.mark.parametrize("verifier", ["pomdp", "threshold"])
def test_it_escalates_where_the_cheap_model_fails(verifier: str) -> None:
    data, unseen = outcomes(400, 2), outcomes(200, 2, seed=1)
    router = build_router(f"automix:verifier={verifier}").fit(data)
    estimate = router.predict(queries(unseen, router))
    assert argmax_quality(estimate, unseen) > unseen.scores.mean(axis=0).max() + 0.2
    at_home = unseen.domains == "algebra"
    assert (estimate[at_home].argmax(axis=1) == 0).mean() > 0.95
    assert (estimate[~at_home].argmax(axis=1) == 1).mean() > 0.95


def test_one_cut_leaves_two_beliefs() -> None:
    data = outcomes(300, 3)
    router = build_router("automix:verifier=threshold").fit(data)
    assert len(np.unique(router.predict(queries(data, router)).round(9), axis=0)) == 2


def test_the_cheapest_model_is_verified_and_the_next_ones_on_request() -> None:
    data = outcomes(300, 3, num_domains=3)
    dear_first = change(data, costs=data.costs[:, ::-1].copy())
    for table, expected in ((data, [0, 1]), (dear_first, [2, 1])):
        router = build_router("automix:verified=2").fit(table)
        votes = router._votes(
            1 / (1 + np.exp(-(table.embeddings @ router._weights[:-1] + router._weights[-1])))
        )
        for column, model in zip(votes.T, expected, strict=True):
            assert np.corrcoef(column, table.scores[:, model])[0, 1] > 0.5


def test_two_verified_models_tell_three_specialists_apart() -> None:
    data, unseen = outcomes(600, 3, num_domains=3), outcomes(300, 3, num_domains=3, seed=1)
    quality = []
    for verified in (1, 2):
        router = build_router(f"automix:verified={verified}").fit(data)
        quality.append(argmax_quality(router.predict(queries(unseen, router)), unseen))
    assert quality[1] > quality[0] + 0.1


def test_on_noise_it_stays_near_the_means() -> None:
    data, unseen = outcomes(600, skill=0.5), outcomes(100, seed=1)
    router = build_router("automix").fit(data)
    off = router.predict(queries(unseen, router)) - data.scores.mean(axis=0)
    assert np.sqrt(np.square(off).mean()) < 0.1


def test_it_decides_before_anything_is_generated() -> None:
    assert router_class("automix").timing == "pre-generation"


@pytest.mark.parametrize("setting", ["samples=0", "verified=0", "shrink=-1", "shrink=nan"])
def test_impossible_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="router 'automix': expected samples >= 1"):
        build_router(f"automix:{setting}")


def test_an_unknown_verifier_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'pomdp'"):
        build_router("automix:verifier=pomdb")
