from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.prompts.calibration import (
    ScaledLogits,
    contrast_error,
    log_odds,
    train_scaled,
)
from crossroads.prompts.regression import sigmoid
from tests.prompts.routers.tables import outcomes


def drawn(logit: np.ndarray, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random(logit.shape) < sigmoid(logit)).astype(np.float32)


def test_log_odds_undo_the_sigmoid_and_stay_finite() -> None:
    p = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(sigmoid(log_odds(p)), p)
    assert np.isfinite(log_odds(np.array([0.0, 1.0]))).all()


def test_what_all_models_share_is_no_contrast_error() -> None:
    data = outcomes(missing=0.0)
    mean = data.mean_scores()
    hardness = np.random.default_rng(0).normal(size=(80, 1))
    guess = np.full_like(data.scores, 0.3)
    assert contrast_error(guess + hardness, data.scores, mean) == pytest.approx(
        contrast_error(guess, data.scores, mean)
    )
    assert contrast_error(data.scores + hardness, data.scores, mean) == pytest.approx(0, abs=1e-6)


def test_outputs_that_point_the_wrong_way_are_not_turned_around() -> None:
    z = np.random.default_rng(1).normal(size=(500, 3))
    scores = drawn(-2 * z)
    scale = ScaledLogits.fit(z, z, scores, scores.mean(axis=0))
    assert scale.common == scale.contrast == 0.0


def test_slopes_stay_finite_where_outputs_separate_and_0_where_nothing_is_known() -> None:
    raw = np.array([[-1.0, 1.0], [1.0, -1.0]])
    separated = ScaledLogits.fit(raw, raw, (raw > 0).astype(np.float32), np.array([0.5, 0.5]))
    assert 0 < separated.contrast < 100
    nothing = ScaledLogits.fit(raw, raw[:0], raw[:0], np.array([0.3, 0.6]))
    np.testing.assert_allclose(nothing(raw), [[0.3, 0.6]] * 2)


def test_another_fit_keeps_the_slopes_and_takes_its_own_centre() -> None:
    z = np.random.default_rng(1).normal(size=(200, 2))
    scale = ScaledLogits.fit(z, z, drawn(z), np.array([0.5, 0.5]))
    moved = scale.with_centre(z + 3.0)
    np.testing.assert_allclose(moved(z + 3.0), scale(z))


def test_useless_outputs_leave_about_the_means() -> None:
    data = outcomes(2000, skill=0.5)
    raw = np.random.default_rng(5).normal(size=(2000, 3)) * 10
    scale = ScaledLogits.fit(raw, raw, data.scores, data.mean_scores())
    assert np.abs(scale(raw) - data.mean_scores()).mean() < 0.02


def test_useful_outputs_get_their_scale_back() -> None:
    z = np.random.default_rng(2).normal(size=(5000, 3))
    scores = drawn(z)
    scale = ScaledLogits.fit(z * 7, z * 7, scores, scores.mean(axis=0))
    assert scale.common == pytest.approx(1 / 7, rel=0.15)
    assert scale.contrast == pytest.approx(1 / 7, rel=0.15)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.floats(0, 0.6))
def test_scaling_is_its_equation_with_slopes_that_keep_the_order(
    seed: int, num_models: int, missing: float
) -> None:
    data = outcomes(40, num_models, missing=missing, seed=seed)
    raw = np.random.default_rng(seed).normal(size=(40, num_models))
    scale = ScaledLogits.fit(raw, raw, data.scores, data.mean_scores())
    z = raw - raw.mean(axis=0)
    u = z.mean(axis=1, keepdims=True)
    base = log_odds(data.mean_scores())
    expected = 1 / (1 + np.exp(-(base + scale.common * u + scale.contrast * (z - u))))
    np.testing.assert_allclose(scale(raw), expected, atol=1e-9)
    assert min(scale.common, scale.contrast) >= 0
    again = ScaledLogits.restore(scale.state())
    np.testing.assert_array_equal(again(raw), scale(raw))


def test_training_keeps_what_held_out_prompts_confirm() -> None:
    data = outcomes(300)
    start = [np.zeros((16, 3), dtype=np.float32)]

    def raw(p: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
        return np.asarray(data.embeddings[rows] @ p[0])

    def gradient(p: list[np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
        error = (sigmoid(raw(p, rows)) - data.scores[rows]).astype(np.float32)
        return [data.embeddings[rows].T @ error / np.float32(len(rows))]

    found, scale = train_scaled(
        data, lambda: start, raw, gradient, np.random.default_rng(0),
        rate=0.05, decay=0.0, epochs=10,
    )  # fmt: skip
    estimate = scale(data.embeddings @ found[0])
    mean = data.mean_scores()
    error = contrast_error(estimate, data.scores, mean)
    assert error < 0.6 * contrast_error(np.tile(mean, (300, 1)), data.scores, mean)
    assert not start[0].any()
