from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.tryage.predictor import (
    LossPredictor,
    Training,
    _gradient,
    fit_predictor,
    routed_loss,
)
from tests.prompts.routers.slopes import check_gradient


def toy(num_prompts: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three experts, each with low loss on prompts near its own direction; losses in nats."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_prompts, 12)).astype(np.float32)
    home = rng.integers(3, size=num_prompts)
    rows[np.arange(num_prompts), home] += 4.0
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    losses = 3.0 + rng.normal(scale=0.1, size=(num_prompts, 3)) + [0.0, 0.2, 0.4]
    losses[np.arange(num_prompts), home] -= 1.5
    return rows, losses


def fitted(rows: np.ndarray, losses: np.ndarray, **settings: float) -> LossPredictor:
    training = Training(**settings)  # type: ignore[arg-type]
    return fit_predictor(rows, losses, rng=np.random.default_rng(0), training=training)


def test_an_untrained_predictor_gives_every_prompt_the_mean_losses() -> None:
    rows, losses = toy()
    predicted = fitted(rows, losses, epochs=0).predict(rows)
    np.testing.assert_allclose(predicted, np.tile(losses.mean(axis=0), (len(rows), 1)))


def test_it_learns_which_expert_loses_least() -> None:
    unseen, losses = toy(300, seed=1)
    predicted = fitted(*toy()).predict(unseen)
    agreement = (predicted.argmin(axis=1) == losses.argmin(axis=1)).mean()
    assert agreement > 0.85


def test_choices_on_noise_are_no_worse_than_the_best_expert_in_training() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(300, 8)).astype(np.float32)
    losses = rng.normal(size=(300, 4)) + np.array([0.0, 5.0, 5.0, 5.0])
    assert (fitted(rows, losses).predict(rows).argmin(axis=1) == 0).all()


def test_predictions_follow_the_unit_of_the_losses() -> None:
    rows, losses = toy()
    nats, thousands = fitted(rows, losses), fitted(rows, 1000.0 * losses - 7.0)
    np.testing.assert_allclose(
        thousands.predict(rows), 1000.0 * nats.predict(rows) - 7.0, rtol=1e-3
    )


def test_unknown_losses_teach_nothing() -> None:
    rows, losses = toy()
    losses[np.random.default_rng(5).random(losses.shape) < 0.4] = np.nan
    losses[:3] = 3.0
    unseen, true = toy(300, seed=1)
    agreement = fitted(rows, losses).predict(unseen).argmin(axis=1) == true.argmin(axis=1)
    assert agreement.mean() > 0.8


def test_an_expert_of_constant_loss_is_predicted_to_have_it() -> None:
    rows, losses = toy()
    losses[:, 1] = 2.5
    np.testing.assert_allclose(fitted(rows, losses).predict(rows)[:, 1], 2.5, atol=1e-3)


def test_the_gradient_is_that_of_half_the_mean_squared_error() -> None:
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 3))
    known = (rng.random((6, 3)) < 0.7).astype(np.float64)
    parts = [rng.normal(size=shape) for shape in ((4, 5), (5,), (5, 3))]

    def loss(p: list[np.ndarray]) -> float:
        plain = LossPredictor(
            mean=np.zeros(3), spread=np.ones(3), centre=np.zeros(4), scale=1.0, layers=tuple(p)
        )
        return float((np.square(plain.predict(x) - y) * known).sum() / (2 * len(x)))

    check_gradient(loss, parts, _gradient(parts, x, y, known))  # type: ignore[arg-type]


def test_routed_loss_chooses_only_among_known_losses() -> None:
    predicted = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    losses = np.array([[2.0, 9.0], [np.nan, 4.0], [np.nan, np.nan]])
    assert routed_loss(predicted, losses) == 3.0
    assert routed_loss(predicted[:0], losses[:0]) == 0.0


def test_what_cannot_be_learnt_from_is_refused() -> None:
    rows, losses = toy(10)
    with pytest.raises(InputError, match="one row of K experts for each embedding"):
        fitted(rows[:5], losses)
    with pytest.raises(InputError, match="embeddings hold NaN"):
        fitted(np.full_like(rows, np.nan), losses)
    losses[:, 2] = np.nan
    with pytest.raises(InputError, match="expert 2 has no finite loss"):
        fitted(rows, losses)
