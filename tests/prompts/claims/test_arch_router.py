from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import pytest

from crossroads.core.errors import MissingExtraError, UnavailableError
from crossroads.datasets.paths import VARIABLE, data_folder
from crossroads.prompts.claims import arch_router as claim
from crossroads.prompts.claims.arch_router import (
    FOLD,
    judge,
    matcher_accuracy,
    verify,
)
from crossroads.prompts.preferences.backend import RouteChoice
from crossroads.prompts.preferences.conversation import Turn
from crossroads.prompts.preferences.policies import Policy
from crossroads.prompts.preferences.questions import NUM_FOLDS, fold_subjects, mmlu_questions
from crossroads.prompts.preferences.subjects import DOMAINS


@pytest.mark.parametrize(
    ("matched", "gain", "error", "verdict"),
    [
        (0.71, 0.16, 0.03, "holds"),
        (0.69, 0.16, 0.03, "holds in direction"),
        (0.71, 0.14, 0.03, "holds in direction"),
        (0.71, 0.16, 0.09, "null"),
        (0.71, -0.16, 0.03, "fails"),
    ],
)
def test_the_verdict_follows_its_rules(
    matched: float, gain: float, error: float, verdict: str
) -> None:
    assert judge(matched, gain, error) == verdict


def test_folds_part_the_domains() -> None:
    folds = [fold_subjects(fold) for fold in range(NUM_FOLDS)]
    assert frozenset().union(*folds) == {*DOMAINS}
    assert sum(map(len, folds)) == len(DOMAINS)


class Always:
    """A back end that always names one route."""

    def __init__(self, route: str) -> None:
        self.name = self.version = "always"
        self.route = route

    def choose(self, policies: Sequence[Policy], turns: Sequence[Turn]) -> RouteChoice:
        return RouteChoice(route=self.route, scores={})


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/nowhere")


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("full", [False, True])
def test_without_the_questions_shipped_prompts_are_measured_and_nothing_is_tuned(
    full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "load_scorer", lambda: Always("other"))
    verdict = verify(full)
    assert verdict.verdict == "null"  # the rule for a run in which nothing is tuned
    assert "shipped prompts" in verdict.data
    assert "nothing tuned; MMLU not measured: needs routellm_mmlu_gsm8k" in verdict.data
    assert verdict.measured["conversations"] == 60
    assert all(0.5 < share < 1 for share in verdict.measured["matcher_accuracy_by_seed"])
    assert all(0 <= share < 0.5 for share in verdict.measured["untuned_accuracy_by_seed"])


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    "missing", [UnavailableError("no model file"), MissingExtraError("torch", extra="neural")]
)
def test_without_the_language_model_the_claim_still_ends_in_a_verdict(
    missing: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "load_scorer", raising(missing))
    verdict = verify(True)
    assert verdict.verdict == "null"
    assert verdict.measured["untuned_accuracy_by_seed"] == f"not measured: {missing}"


@pytest.mark.parametrize("full", [False, True])
def test_with_the_questions_but_no_language_model_nothing_is_tuned(
    full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "mmlu_questions", dict)
    monkeypatch.setattr(claim, "matcher_accuracy", lambda questions, fold: 0.9)
    monkeypatch.setattr(claim, "load_scorer", raising(UnavailableError("no model file")))
    verdict = verify(full)
    assert verdict.verdict == "null"
    assert verdict.measured["untuned_accuracy_by_seed"] == "not measured: no model file"
    assert "not tuned" in verdict.data


def raising(error: Exception) -> Callable[[], NoReturn]:
    def load() -> NoReturn:
        raise error

    return load


def test_shipped_cases_offer_the_right_policy_unless_the_route_is_other() -> None:
    cases = claim.shipped_cases(seed=0)
    routes = [case.routes[0] for case in cases]
    assert {*routes} == {*claim.SHIPPED_POLICIES, "other"}
    for case, route in zip(cases, routes, strict=True):
        offered = [policy.name for policy in case.policies]
        assert len({*offered}) == claim.SHIPPED_ON_OFFER
        assert route == "other" or route in offered
    assert 0.1 < routes.count("other") / len(routes) < 0.3
    assert cases == claim.shipped_cases(seed=0) != claim.shipped_cases(seed=1)


@pytest.mark.slow
def test_the_matcher_names_most_policies_of_unseen_subjects() -> None:
    try:
        data_folder("routellm_mmlu_gsm8k")
    except UnavailableError as error:
        pytest.skip(str(error))
    chance = 1 / 6
    assert matcher_accuracy(mmlu_questions(), FOLD) > 3 * chance
