from __future__ import annotations

import pytest

from crossroads.core.errors import UnavailableError
from crossroads.datasets.paths import VARIABLE, data_folder
from crossroads.prompts.claims.arch_router import (
    FOLD,
    judge,
    matcher_accuracy,
    verify,
)
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


def test_without_the_questions_the_claim_names_the_data_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "/nowhere")
    with pytest.raises(UnavailableError, match="routellm_mmlu_gsm8k"):
        verify(False)


@pytest.mark.slow
def test_the_matcher_names_most_policies_of_unseen_subjects() -> None:
    try:
        data_folder("routellm_mmlu_gsm8k")
    except UnavailableError as error:
        pytest.skip(str(error))
    chance = 1 / 6
    assert matcher_accuracy(mmlu_questions(), FOLD) > 3 * chance
