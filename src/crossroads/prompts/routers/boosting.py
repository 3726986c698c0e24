"""Gradient-boosted trees from a few features of the prompt to each model's deviation from its mean.

LightGBM (Ke et al. 2017). Features: principal axes of the embedding, style where there are texts,
domain probabilities where there are domains, and the mean deviation of each model in the prompt's
nearest clusters. Labels and cluster means of training prompts are made without them.

LightGBM grows the trees; what is kept of them is arrays (``crossroads.prompts.trees``), so that
deciding needs NumPy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.clustering import kmeans, squared_distances
from crossroads.prompts.domain_classifier import DomainClassifier, domain_codes
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet
from crossroads.prompts.stacking import grouped_folds
from crossroads.prompts.trees import Forest
from crossroads.prompts.view import PromptReader, PromptView

Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

_AXES = 24
_CLUSTERS = 64
_SHRINK = 20.0  # prompts of the model's mean added to each cluster
_FOLDS = 4


@dataclass(kw_only=True)
class Boosting(PromptRouter):
    """An ensemble of small trees for each model.

    Parameters
    ----------
    trees : in each ensemble, >= 1
    leaves : of each tree, >= 2
    rate : learning rate, in (0, 1]
    """

    name = "boosting"
    summary = "boosted trees on a few features"
    uses_domains = True
    uses_subjects = True

    trees: int = 40
    leaves: int = 7
    rate: float = 0.07

    def __post_init__(self) -> None:
        if self.trees < 1 or self.leaves < 2 or not 0 < self.rate <= 1:
            raise UsageError(
                "router 'boosting': expected trees >= 1, leaves >= 2 and rate in (0, 1], got "
                f"trees={self.trees!r}, leaves={self.leaves!r} and rate={self.rate!r}"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self._mean = data.mean_scores()
        self._reader, self._classifier = PromptReader(), None
        view = self._reader.fit(data)
        fold_N = grouped_folds(data.embeddings, _FOLDS, rng)
        label_NC = np.zeros((len(view), 0))
        if data.labels is not None:
            code_N, num_domains = domain_codes(data.labels)
            if num_domains > 1:
                self._classifier = DomainClassifier()
                label_NC = self._classifier.fit_held_out(view, code_N, num_domains, fold_N)
        deviation_NK = data.scores - self._mean
        cluster_NK = self._learn_clusters(view, deviation_NK, fold_N, rng)
        features = _features(view, label_NC, cluster_NK)
        self._num_features = features.shape[1]
        self._forest = self._grow(features, deviation_NK, int(rng.integers(2**31)))

    def _learn_clusters(
        self, view: PromptView, deviation_NK: Float64, fold_N: Ints, rng: np.random.Generator
    ) -> Float64:
        """Keep centres and their mean deviations; return those of the training prompts, (N, K).

        A training prompt sees the means of the other folds.
        """
        self._centres = kmeans(view.principal, _CLUSTERS, rng)
        home_N = squared_distances(view.principal, self._centres).argmin(axis=1)
        self._cluster_means = _cluster_means(home_N, deviation_NK, len(self._centres))
        held_out = np.zeros(deviation_NK.shape)
        for j in np.unique(fold_N):
            train, test = np.flatnonzero(fold_N != j), np.flatnonzero(fold_N == j)
            means = _cluster_means(home_N[train], deviation_NK[train], len(self._centres))
            held_out[test] = means[home_N[test]]
        return held_out

    def _grow(self, features: Float64, deviation_NK: Float64, seed: int) -> Forest:
        """Return the trees of all models; none where a model's score never varies."""
        import lightgbm

        settings = {
            "objective": "regression",
            "boost_from_average": False,  # targets are deviations: without trees, the mean
            "num_leaves": self.leaves,
            "learning_rate": self.rate,
            "min_data_in_leaf": max(20, len(features) // 100),
            "lambda_l2": 10.0,
            "feature_fraction": 0.5,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "max_bin": 63,
            "feature_pre_filter": False,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "verbose": -1,
        }
        # Features are binned once; a model's missing cells have weight 0.
        dataset = lightgbm.Dataset(features, params=settings)
        dumps: list[dict[str, Any]] = []
        for target in deviation_NK.T:
            known = np.isfinite(target)
            dump: dict[str, Any] = {"tree_info": []}
            if np.ptp(target[known]) > 0:
                dataset.set_label(np.where(known, target, 0.0))
                dataset.set_weight(known.astype(np.float64))
                dump = lightgbm.train(settings, dataset, self.trees).dump_model()
            dumps.append(dump)
        return Forest.of(dumps)

    def _predict(self, queries: Queries) -> Float64:
        view = self._reader.read(queries)
        label_NC = np.zeros((len(view), 0))
        if self._classifier is not None:
            label_NC = self._classifier.probabilities(view)
        home_N = squared_distances(view.principal, self._centres).argmin(axis=1)
        features = _features(view, label_NC, self._cluster_means[home_N])
        return self._mean + self._forest.predict(features, len(self._mean))

    def _state(self) -> Arrays:
        return {
            "mean": self._mean,
            "centres": self._centres,
            "cluster_means": self._cluster_means,
            "num_features": np.array(self._num_features),
            **self._forest.state(),
            **self._reader.state(),
            **({} if self._classifier is None else self._classifier.state()),
        }

    def _restore(self, arrays: Arrays) -> None:
        self._mean, self._centres = arrays["mean"], arrays["centres"]
        self._cluster_means = arrays["cluster_means"]
        self._reader = PromptReader.restore(arrays)
        has_domains = "domain_weights" in arrays
        self._classifier = DomainClassifier.restore(arrays) if has_domains else None
        self._num_features = int(arrays["num_features"])
        self._forest = Forest.restore(
            arrays, num_features=self._num_features, num_outputs=len(self._mean)
        )


def _features(view: PromptView, label_NC: Float64, cluster_NK: Float64) -> Float64:
    return np.concatenate([view.principal[:, :_AXES], view.style, label_NC, cluster_NK], axis=1)


def _cluster_means(home_N: Ints, deviation_NK: Float64, num_clusters: int) -> Float64:
    """Mean deviation of each model in each cluster, (C, K), shrunk towards 0."""
    known_NK = np.isfinite(deviation_NK)
    total = np.zeros((num_clusters, deviation_NK.shape[1]))
    count = np.zeros_like(total)
    np.add.at(total, home_N, np.where(known_NK, deviation_NK, 0.0))
    np.add.at(count, home_N, known_NK)
    return np.asarray(total / (count + _SHRINK))
