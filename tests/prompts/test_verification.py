from __future__ import annotations

import json

import numpy as np
import pytest

from crossroads.core.calibration import SdmSettings
from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.verification import METHODS, Verifier, balanced_rows, check_method

from ..core.calibration.toy_vectors import clouds

SETTINGS = SdmSettings(width=8, epochs=5, rate=1e-2, batch=16, restarts=2)


def fit(method: str = "sdm", **changes: object) -> Verifier:
    x, label = clouds(600)
    given = {"level": 0.9, "settings": SETTINGS, "ids": [f"row {n}" for n in range(600)]}
    return Verifier.fit(x, label, method=method, **{**given, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=METHODS)
def verifier(request: pytest.FixtureRequest) -> Verifier:
    return fit(request.param)


def test_known_ground_is_accepted_rightly_and_foreign_ground_is_abstained_from(
    verifier: Verifier,
) -> None:
    x, label = clouds(200, seed=1)
    answers = verifier.verify(x)
    accepted = np.array([a.accepted for a in answers])
    assert accepted.mean() > 0.2
    assert np.mean([answers[n].prediction == label[n] for n in np.flatnonzero(accepted)]) > 0.95
    assert {a.answer for a in verifier.verify(x + 1000)} == {"abstain"}
    assert (verifier.accepts(x) == accepted).all()


def test_exemplars_are_the_nearest_labelled_rows_with_their_names(verifier: Verifier) -> None:
    x, label = clouds(600)
    row = verifier.estimators[0].support.row[0]
    name = verifier.ids[row]
    n = int(name.split()[1])
    found = verifier.verify(x[[n]], num_exemplars=2)[0].exemplars
    assert [found[0].id, found[0].label] == [name, label[n]]
    assert found[0].distance <= found[1].distance
    assert found[0].distance == pytest.approx(0, abs=1e-2)


def test_only_the_wanted_class_is_accepted() -> None:
    x, _ = clouds(200, seed=1)
    either, wanted = fit().verify(x), fit(accepting=1).verify(x)
    assert {a.prediction for a in wanted if a.accepted} == {1}
    assert [a.accepted for a in wanted] == [a.accepted and a.prediction == 1 for a in either]


def test_when_all_must_agree_no_more_is_accepted() -> None:
    x, _ = clouds(200, gap=3.0, seed=1)
    one, together = fit().accepts(x), fit(all_agree=True).accepts(x)
    assert (together <= one).all() and together.any()


def test_a_saved_verifier_answers_alike(verifier: Verifier) -> None:
    facts, arrays = verifier.state()
    again = Verifier.restore(json.loads(json.dumps(facts)), arrays)
    x, _ = clouds(40, seed=2)
    assert again.verify(x) == verifier.verify(x)


def test_a_damaged_state_is_refused(verifier: Verifier) -> None:
    facts, arrays = verifier.state()
    for wrong in ({"num_estimators": 0}, {"method": "sdn"}):
        with pytest.raises(ValueError, match="a verifier of"):
            Verifier.restore({**facts, **wrong}, arrays)
    with pytest.raises(KeyError):
        Verifier.restore({**facts, "num_estimators": 9}, arrays)


def test_a_repellent_is_heard_without_retraining(verifier: Verifier) -> None:
    x, _ = clouds(200, seed=1)
    accepted = x[verifier.accepts(x)][:1]
    warned = verifier.with_support(accepted, [-1])
    answer = warned.verify(accepted)[0]
    assert answer.answer == "abstain"
    assert answer.exemplars[0].id == "added" and not answer.exemplars[0].matches


def test_another_level_needs_no_fitting(verifier: Verifier) -> None:
    strict = verifier.at_level(1.0)
    assert strict.level == 1.0
    assert strict.num_rows == verifier.num_rows
    x, _ = clouds(50, gap=2.0, seed=3)
    assert strict.accepts(x).sum() <= verifier.at_level(0.6).accepts(x).sum()


def test_a_task_that_cannot_be_learnt_accepts_nothing_and_says_so() -> None:
    x, label = clouds(300, gap=0.0)
    hard = Verifier.fit(x, label, settings=SETTINGS)
    assert hard.is_empty
    assert not hard.accepts(x).any()


def test_classes_are_balanced_by_the_rarest_and_capped() -> None:
    label = np.array([0] * 30 + [1] * 10)
    rng = np.random.default_rng(0)
    rows = balanced_rows(label, 100, rng)
    assert np.bincount(label[rows]).tolist() == [10, 10]
    assert np.bincount(label[balanced_rows(label, 4, rng)]).tolist() == [4, 4]


def test_nothing_to_verify_is_no_answer(verifier: Verifier) -> None:
    assert verifier.verify(np.zeros((0, 6))) == []


def test_wrong_uses_are_refused(verifier: Verifier) -> None:
    with pytest.raises(UsageError, match="did you mean 'sdm'"):
        check_method("sdn")
    with pytest.raises(InputError, match=r"\(N, 6\)"):
        verifier.verify(np.zeros((1, 5)))
    with pytest.raises(InputError, match="2 ids for 600 labels"):
        fit(ids=["a", "b"])
    with pytest.raises(InputError, match="level"):
        fit(level=0.3)
