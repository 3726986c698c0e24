"""Gradient-boosted trees on a few features: principal axes, style, predicted category.

Trees find interactions that linear estimates miss but need few and dense features. Saved as
LightGBM's own text format, which loads without running code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.domain_classifier import DomainClassifier, domain_codes
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet
from crossroads.prompts.stacking import grouped_folds
from crossroads.prompts.view import PromptReader, PromptView

Float64 = npt.NDArray[np.float64]

_AXES = 24
_FOLDS = 4
_HELD_OUT_FOLD = 0  # stops the boosting of each model
_PATIENCE = 10
_FEWEST_PROMPTS = 40  # fewer cannot fill two leaves of a tree


@dataclass(kw_only=True)
class Boosting(PromptRouter):
    """Quality of model m = mean_m + trees_m(features); one ensemble a model, stopped early.

    Parameters
    ----------
    rounds : most trees a model, >= 1
    rate : shrinkage of each tree, in (0, 1]
    leaves : of a tree, >= 2
    """

    name = "boosting"
    summary = "boosted trees on a few features of the prompt"

    rounds: int = 80
    rate: float = 0.08
    leaves: int = 8

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 < self.rate <= 1 or self.leaves < 2:
            raise UsageError(
                "router 'boosting': expected rounds >= 1, rate in (0, 1] and leaves >= 2, got "
                f"{self.settings}"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self._mean = data.mean_scores()
        self._reader = PromptReader()
        self._classifier: DomainClassifier | None = None
        view = self._reader.fit(data)
        fold_N = grouped_folds(data.embeddings, _FOLDS, rng)
        label_NC = np.zeros((len(data), 0))
        if data.domains is not None:
            code_N, num_domains = domain_codes(data.domains)
            if num_domains > 1:
                self._classifier = DomainClassifier()
                label_NC = self._classifier.fit_held_out(view, code_N, num_domains, fold_N)
        features = _features(view, label_NC)
        seed = int(rng.integers(2**31))
        self._texts = [
            self._boost(features, data.scores[:, m] - self._mean[m], fold_N, seed)
            for m in range(len(self.models))
        ]
        self._boosters: list[Any] | None = None

    def _boost(
        self, features: Float64, target_N: Float64, fold_N: npt.NDArray[np.intp], seed: int
    ) -> str:
        """Return one model's trees as text; empty where there is too little to learn from."""
        import lightgbm

        known = np.isfinite(target_N)
        train, held_out = known & (fold_N != _HELD_OUT_FOLD), known & (fold_N == _HELD_OUT_FOLD)
        if train.sum() < _FEWEST_PROMPTS or not held_out.any():
            return ""
        settings = {
            "objective": "l2",
            "learning_rate": self.rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": _FEWEST_PROMPTS // 2,
            "lambda_l2": 20.0,
            "feature_fraction": 0.5,
            "max_bin": 63,
            "boost_from_average": False,  # the means are added outside
            "feature_pre_filter": False,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "verbosity": -1,
            "seed": seed,
        }
        dataset = lightgbm.Dataset(features[train], target_N[train], params=settings)
        judged = lightgbm.Dataset(features[held_out], target_N[held_out], reference=dataset)
        booster = lightgbm.train(
            settings,
            dataset,
            num_boost_round=self.rounds,
            valid_sets=[judged],
            callbacks=[lightgbm.early_stopping(_PATIENCE, verbose=False)],
        )
        text: str = booster.model_to_string(num_iteration=booster.best_iteration)
        return text

    def _predict(self, queries: Queries) -> Float64:
        view = self._reader.read(queries)
        label_NC = np.zeros((len(view), 0))
        if self._classifier is not None:
            label_NC = self._classifier.probabilities(view)
        features = _features(view, label_NC)
        estimate = np.tile(self._mean, (len(view), 1))
        for m, booster in enumerate(self._loaded()):
            if booster is not None:
                estimate[:, m] += booster.predict(features, num_threads=1)
        return estimate

    def _loaded(self) -> list[Any]:
        if self._boosters is None:
            import lightgbm

            self._boosters = [
                lightgbm.Booster(model_str=text) if text else None for text in self._texts
            ]
        return self._boosters

    def _state(self) -> Arrays:
        learned = {} if self._classifier is None else self._classifier.state()
        trees = {
            f"trees_{m}": np.frombuffer(text.encode(), dtype=np.uint8)
            for m, text in enumerate(self._texts)
        }
        return {"mean": self._mean, **self._reader.state(), **learned, **trees}

    def _restore(self, arrays: Arrays) -> None:
        self._mean = arrays["mean"]
        self._reader = PromptReader.restore(arrays)
        has_domains = "domain_weights" in arrays
        self._classifier = DomainClassifier.restore(arrays) if has_domains else None
        self._texts = [arrays[f"trees_{m}"].tobytes().decode() for m in range(len(self.models))]
        self._boosters = None


def _features(view: PromptView, label_NC: Float64) -> Float64:
    return np.concatenate([view.principal[:, :_AXES], view.style, label_NC], axis=1)
