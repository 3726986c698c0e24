from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.calibration import training
from crossroads.core.calibration.activation import sdm_loss
from crossroads.core.calibration.training import SdmSettings, train
from crossroads.core.errors import InputError

from .toy_vectors import clouds

SMALL = SdmSettings(width=8, epochs=4, rate=1e-2, batch=16, restarts=1)


def test_gradients_are_those_of_the_mean_loss() -> None:
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(6, 4)), np.array([0, 1, 2, 0, 1, 2])
    similarity, distance = rng.integers(0, 9, 6).astype(float), rng.random(6)
    shapes = [(5, 4), (5,), (3, 5), (3,)]
    parameters = [rng.normal(size=s) for s in shapes]

    def loss(given: list[np.ndarray]) -> float:
        g, gb, w, wb = given
        logit = (x @ g.T + gb) @ w.T + wb
        return float(sdm_loss(logit, label, similarity, distance).mean())

    slopes = training._gradient(parameters, x, label, similarity, distance)  # type: ignore[arg-type]
    for p, slope in enumerate(slopes):
        assert slope.shape == shapes[p]
        for index in np.ndindex(shapes[p]):
            moved = []
            for step in (1e-5, -1e-5):
                changed = [q.copy() for q in parameters]
                changed[p][index] += step
                moved.append(loss(changed))
            assert slope[index] == pytest.approx((moved[0] - moved[1]) / 2e-5, abs=1e-5)


def test_the_kept_epoch_is_the_one_of_least_calibration_loss() -> None:
    x, label = clouds(gap=3.0)
    seen: list[float] = []
    evaluate = training._evaluate

    def spy(*args: object) -> training.Trained:
        found = evaluate(*args)  # type: ignore[arg-type]
        seen.append(found.loss)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_evaluate", spy)
        kept = train(
            x[:80],
            label[:80],
            x[80:],
            label[80:],
            num_classes=2,
            settings=SMALL,
            rng=np.random.default_rng(0),
        )
    assert len(seen) == SMALL.epochs
    assert kept.loss == min(seen)


def test_separable_clouds_are_learnt() -> None:
    x, label = clouds(800)
    kept = train(
        x[:400],
        label[:400],
        x[400:],
        label[400:],
        num_classes=2,
        settings=SMALL,
        rng=np.random.default_rng(0),
    )
    assert (kept.logit.argmax(axis=1) == label[400:]).mean() > 0.95
    assert np.median(kept.similarity) > 10


@pytest.mark.parametrize("name", ["width", "epochs", "batch", "restarts", "depth"])
def test_settings_refuse_nothing_to_do(name: str) -> None:
    with pytest.raises(InputError, match=name):
        SdmSettings(**{name: 0})


def test_settings_refuse_a_step_of_nothing() -> None:
    with pytest.raises(InputError, match="rate"):
        SdmSettings(rate=0)
