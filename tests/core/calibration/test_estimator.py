from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from crossroads.core.calibration.activation import sdm
from crossroads.core.calibration.estimator import (
    SdmEstimator,
    fit_estimators,
    split_halves,
    unanimous,
)
from crossroads.core.calibration.region import dkw
from crossroads.core.calibration.training import SdmSettings
from crossroads.core.errors import InputError

from .toy_vectors import clouds

SETTINGS = SdmSettings(width=8, epochs=5, rate=1e-2, batch=16, restarts=2)


@pytest.fixture(scope="module")
def estimators() -> list[SdmEstimator]:
    x, label = clouds(600)
    return fit_estimators(x, label, num_classes=2, level=0.9, settings=SETTINGS)


def test_easy_points_are_admitted_and_far_ones_are_not(estimators: list[SdmEstimator]) -> None:
    x, label = clouds(200, seed=1)
    found = estimators[0].estimate(x)
    assert found.admitted.mean() > 0.4
    assert (found.prediction == label)[found.admitted].mean() > 0.95
    far = estimators[0].estimate(x + 1000)
    assert not far.admitted.any()
    assert (far.distance == 0).all()


def test_a_hard_task_has_an_empty_region() -> None:
    x, label = clouds(300, gap=0.0)
    hard = fit_estimators(x, label, num_classes=2, settings=replace(SETTINGS, restarts=1))[0]
    assert hard.region.is_empty
    assert not hard.estimate(x).admitted.any()


def test_the_lower_end_shrinks_the_distance_by_the_band(estimators: list[SdmEstimator]) -> None:
    best, (x, _) = estimators[0], clouds(20, seed=2)
    found = best.estimate(x)
    held = best.calibration
    for n in range(len(x)):
        below = held.effective < found.effective[n]
        fewest = min((below & (held.label == c)).sum() for c in (0, 1))
        lower = max(found.distance[n] - dkw(fewest, 0.9), 0)
        expected = sdm(found.logit[n : n + 1], found.similarity[n], lower)
        assert found.lower_probability[n] == pytest.approx(expected[0])


def test_one_row_is_judged_as_in_a_batch(estimators: list[SdmEstimator]) -> None:
    x, _ = clouds(9, seed=3)
    whole = estimators[0].estimate(x)
    for n in range(9):
        alone = estimators[0].estimate(x[n : n + 1])
        assert alone.similarity[0] == whole.similarity[n]
        assert alone.probability[0] == pytest.approx(whole.probability[n], abs=1e-6)


def test_the_least_calibration_loss_comes_first(estimators: list[SdmEstimator]) -> None:
    assert len(estimators) == 2
    assert estimators[0].loss <= estimators[1].loss


def test_unanimity_never_admits_more_than_one_of_them(estimators: list[SdmEstimator]) -> None:
    x, _ = clouds(100, gap=3.0, seed=4)
    each = [e.estimate(x) for e in estimators]
    agreed = unanimous(each)
    assert agreed.any()
    assert (agreed <= each[0].admitted).all() and (agreed <= each[1].admitted).all()


def test_another_level_is_read_off_the_same_calibration(estimators: list[SdmEstimator]) -> None:
    lax = estimators[0].at_level(0.6)
    assert lax.region.level == 0.6
    assert lax.region.least_similarity <= estimators[0].region.least_similarity


def test_a_repellent_ends_the_similarity_of_what_lies_near_it(
    estimators: list[SdmEstimator],
) -> None:
    x, _ = clouds(200, seed=5)
    best = estimators[0]
    admitted = x[best.estimate(x).admitted][:1]
    warned = best.with_support(admitted, [-1])
    assert warned.estimate(admitted).similarity.tolist() == [0]
    assert not warned.estimate(admitted).admitted.any()
    assert len(best.support) + 1 == len(warned.support)


def test_support_points_of_a_known_class_raise_the_similarity(
    estimators: list[SdmEstimator],
) -> None:
    x, _ = clouds(200, seed=5)
    best = estimators[0]
    found = best.estimate(x)
    row = np.flatnonzero(found.admitted)[0]
    more = best.with_support(x[[row]], found.prediction[[row]]).estimate(x[[row]])
    assert more.similarity[0] == found.similarity[row] + 1
    assert more.nearest_distance[0] == 0 and more.distance[0] == 1


def test_a_saved_estimator_judges_alike(estimators: list[SdmEstimator]) -> None:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **estimators[0].state())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        again = SdmEstimator.restore(dict(arrays))
    x, _ = clouds(30, seed=6)
    before, after = estimators[0].estimate(x), again.estimate(x)
    assert (before.probability == after.probability).all()
    assert (before.admitted == after.admitted).all()
    assert again.region.least_similarity == estimators[0].region.least_similarity


def test_the_same_seed_fits_the_same_estimator() -> None:
    x, label = clouds(80)
    short = replace(SETTINGS, epochs=2, restarts=1)
    one, two = (
        fit_estimators(x, label, num_classes=2, settings=short, seed=3)[0] for _ in range(2)
    )
    assert (one.adaptor.g_weight == two.adaptor.g_weight).all()


def test_copies_and_groups_stay_in_one_half() -> None:
    x, label = clouds(60)
    x[1::2], label = x[::2], np.tile([0, 0, 1, 1], 15)  # rows come in equal pairs
    group = np.arange(60) // 4  # and pairs in fours
    fit, held = split_halves(x, label, group, np.random.default_rng(0))
    assert sorted([*fit, *held]) == list(range(60))
    assert not {v.tobytes() for v in x[fit]} & {v.tobytes() for v in x[held]}
    assert not set(group[fit]) & set(group[held])


def test_progress_counts_every_epoch_of_every_restart() -> None:
    x, label = clouds(40)
    seen: list[tuple[int, int]] = []
    short = replace(SETTINGS, epochs=2)
    fit_estimators(x, label, num_classes=2, settings=short, progress=lambda *now: seen.append(now))
    assert seen == [(n, 4) for n in range(1, 5)]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, 2, 0], r"\[0, 2\)"),
        ([0, 0, 0, 1], "class 1 has 1"),
        ([0, 1, 0], "labels"),
    ],
)
def test_labels_that_cannot_be_calibrated_on_are_refused(labels: list[int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        fit_estimators(np.eye(4, dtype=np.float32), labels, num_classes=2, settings=SETTINGS)


def test_a_class_of_copies_only_is_refused() -> None:
    x = np.repeat(np.eye(2, dtype=np.float32), 4, axis=0)
    with pytest.raises(InputError, match="too few distinct rows"):
        fit_estimators(x, np.repeat([0, 1], 4), num_classes=2, settings=SETTINGS)


def test_three_classes_are_told_apart_and_each_reaches_the_level() -> None:
    def three(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        x, _ = clouds(count, gap=0.0, seed=seed)
        label = np.arange(count) % 3
        x[np.arange(count), label] += 8
        return x, label

    x, label = three(900, 0)
    best = fit_estimators(x, label, num_classes=3, level=0.9, settings=SETTINGS)[0]
    fresh, truth = three(300, 1)
    found = best.estimate(fresh)
    assert found.probability.shape == (300, 3)
    for c in range(3):
        admitted = found.admitted & (truth == c)
        assert admitted.any()
        assert (found.prediction[admitted] == c).mean() > 0.9
