"""A neural network predicts each model's loss; the prompt goes to the least.

Tryage (2023, arXiv 2308.11601): a perceptive router learns, from the losses of all experts on every
training prompt, to predict them from the prompt alone. Choosing is then
argmin_k L_hat_k + sum_j lambda_j C_jk, with penalties C for the user's goals (size, cost, age),
which ``crossroads.prompts.tryage`` reads from flags in the prompt.

Where we differ: the encoder is frozen and the head has one hidden layer, in place of a fine-tuned
encoder; losses are predicted as deviations from the models' means, standardised; training stops
when the choices on held-out prompts get no better, so a router that learnt nothing is the best
single model. In an outcome table the loss is 1 - score; real losses of any scale go to
``crossroads.prompts.tryage.predictor.fit_predictor``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet
from crossroads.prompts.tryage.predictor import LossPredictor, Training, fit_predictor


@dataclass(kw_only=True)
class Tryage(PromptRouter):
    """One hidden layer of Gaussian error linear units from embedding to every model's loss.

    Parameters
    ----------
    hidden : units, >= 1
    epochs : most passes over the training prompts, >= 0; 0 leaves the best single model
    rate : step length of Adam, > 0
    decay : weight decay as a share of the step, >= 0
    batch : prompts a step, >= 1
    patience : epochs without better choices on held-out prompts before stopping, >= 1
    """

    name = "tryage"
    summary = "predicted loss of each model, a network stopped on its choices"
    axis = "domain"

    hidden: int = 256
    epochs: int = 20
    rate: float = 1e-3
    decay: float = 10.0
    batch: int = 128
    patience: int = 5

    def __post_init__(self) -> None:
        if (
            min(self.hidden, self.batch, self.patience) < 1
            or self.epochs < 0
            or not 0 < self.rate < 1
            or not 0 <= self.decay < np.inf
            or self.rate * self.decay > 1  # such a step would overshoot zero
        ):
            raise UsageError(
                "router 'tryage': expected hidden, batch and patience >= 1, epochs >= 0, "
                f"0 < rate < 1 and decay from 0 to 1 / rate, got {self.settings!r}"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        training = Training(**self.settings)
        losses_NK = 1.0 - data.scores
        self._predictor = fit_predictor(data.embeddings, losses_NK, rng=rng, training=training)

    def _predict(self, queries: Queries) -> npt.NDArray[np.float64]:
        return 1.0 - self._predictor.predict(queries.embeddings)

    def _state(self) -> Arrays:
        return self._predictor.state()

    def _restore(self, arrays: Arrays) -> None:
        self._predictor = LossPredictor.restore(arrays)
