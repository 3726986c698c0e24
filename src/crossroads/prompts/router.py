"""The contract every prompt router obeys.

A router estimates, for each prompt, how good every model of the pool would be. It knows nothing of
prices, budgets or thresholds: those belong to the decision rule (``crossroads.prompts.decide``),
so that any router can be swept, calibrated, compared and served alike.

A router is one module in ``crossroads/prompts/routers/`` with one public subclass of
``PromptRouter``, a keyword-only dataclass whose fields are its settings::

    @dataclass(kw_only=True)
    class NearestNeighbours(PromptRouter):
        name = "knn"
        k: int = 50

        def _fit(self, data, rng): ...
        def _predict(self, queries): ...
        def _state(self): return {"embeddings": self._embeddings, "scores": self._scores}
        def _restore(self, arrays): ...

The module's name, with dashes for underscores, is the router's name. The catalogue finds it, the
arena, ``fit``, artefacts and the gateway work with it, and the conformance suite tests it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.prompts.taxonomy import Adding, Axis, Method, Needs, Timing

Float = npt.NDArray[np.floating[Any]]
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """What a router may learn from: N prompts, K models, D features.

    ``scores`` holds NaN where a model was not run. ``domains``, ``subjects`` (finer labels) and
    ``texts`` may be absent.
    """

    models: tuple[str, ...]
    embeddings: npt.NDArray[np.float32]  # (N, D), unit rows
    scores: npt.NDArray[np.float32]  # (N, K) in [0, 1], NaN = not run
    costs: npt.NDArray[np.float64]  # (N, K) USD, NaN = unknown
    domains: npt.NDArray[np.object_] | None = None  # (N,)
    subjects: npt.NDArray[np.object_] | None = None  # (N,)
    texts: npt.NDArray[np.object_] | None = None  # (N,)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def labels(self) -> npt.NDArray[np.object_] | None:
        """Shape (N,): the finest labels there are, subjects or else domains; None without."""
        return self.domains if self.subjects is None else self.subjects

    def take(self, rows: npt.NDArray[Any]) -> TrainingSet:
        """Return the training set of these rows."""
        changes: dict[str, Any] = {
            f.name: value[rows]
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), np.ndarray)
        }
        return dataclasses.replace(self, **changes)

    def mean_scores(self) -> npt.NDArray[np.float64]:
        """Shape (K,): mean score of each model over the prompts it was run on (0 if none)."""
        return column_means(self.scores)

    def mean_costs(self) -> npt.NDArray[np.float64]:
        """Shape (K,): mean cost of each model in USD per call (0 if unknown)."""
        return column_means(self.costs)


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Prompts to route. ``truth`` is given in an arena, and only to routers with ``hindsight``."""

    embeddings: npt.NDArray[np.float32]  # (N, D)
    texts: npt.NDArray[np.object_] | None = None
    domains: npt.NDArray[np.object_] | None = None
    truth: npt.NDArray[np.float32] | None = None  # (N, K)
    chance: npt.NDArray[np.float32] | None = None  # (N,)

    def __len__(self) -> int:
        return len(self.embeddings)

    def take(self, rows: slice | npt.NDArray[Any]) -> Queries:
        """Return these prompts."""
        parts = {name: value[rows] for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(self, **parts)


class PromptRouter(ABC):
    """Estimates the quality of each model on each prompt.

    Subclasses are keyword-only dataclasses and implement ``_fit``, ``_predict``, ``_state`` and
    ``_restore``. Class attributes say what a router can do and how the survey "Doing More with
    Less" (arXiv 2502.00409) classifies it.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    version: ClassVar[int] = 1  # raised when the saved state changes meaning
    hindsight: ClassVar[bool] = False  # sees the answers: a bound, not a router
    needs_embeddings: ClassVar[bool] = True
    needs_domains: ClassVar[bool] = False  # in training
    uses_domains: ClassVar[bool] = False  # in training, where there are any
    uses_subjects: ClassVar[bool] = False  # in place of domains, where there are any
    timing: ClassVar[Timing] = "pre-generation"
    method: ClassVar[Method] = "supervised"
    axis: ClassVar[Axis] = "any"
    needs: ClassVar[Needs] = "full outcome table"
    adding_a_model: ClassVar[Adding] = "refit"

    models: tuple[str, ...] = ()

    def fit(self, data: TrainingSet, *, seed: int = 0) -> Self:
        """Learn from outcomes and return self.

        Raises InputError when the data cannot be learnt from: no rows, NaN embeddings, shapes that
        disagree, a model never run, or no domains where the router needs them.
        """
        self._check(data)
        self.models = data.models
        self._fit(data, np.random.default_rng(seed))
        return self

    def predict(self, queries: Queries) -> npt.NDArray[np.float64]:
        """Return the estimated quality, shape (N, K), finite; higher is better."""
        if not self.models:
            raise InputError(f"router {self.name!r} is not fitted; call fit() or load an artefact")
        if self.hindsight and queries.truth is None:
            raise InputError(
                f"router {self.name!r} decides with hindsight and works only inside an arena, "
                "where the outcomes are known; fit another one to serve"
            )
        return np.asarray(self._predict(queries), dtype=np.float64)

    @property
    def settings(self) -> dict[str, Any]:
        """The router's settings as plain data."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}  # type: ignore[arg-type]

    def state(self) -> Arrays:
        """Return everything that was learnt, as arrays without Python objects."""
        return self._state()

    @classmethod
    def restore(
        cls, *, models: tuple[str, ...], settings: Mapping[str, Any], arrays: Arrays
    ) -> Self:
        """Rebuild a fitted router from its settings and ``state``."""
        router = cls(**settings)
        router.models = tuple(models)
        router._restore(arrays)
        return router

    @abstractmethod
    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None: ...

    @abstractmethod
    def _predict(self, queries: Queries) -> Float: ...

    @abstractmethod
    def _state(self) -> Arrays: ...

    @abstractmethod
    def _restore(self, arrays: Arrays) -> None: ...

    def _check(self, data: TrainingSet) -> None:
        n, k = data.scores.shape
        if n == 0:
            raise InputError(f"router {self.name!r}: the training set is empty; give more prompts")
        if k != len(data.models):
            raise InputError(
                f"router {self.name!r}: {k} score columns for {len(data.models)} models"
            )
        for name in ("embeddings", "costs", "domains", "subjects", "texts"):
            column = getattr(data, name)
            if column is not None and len(column) != n:
                raise InputError(
                    f"router {self.name!r}: {name} of {len(column)} prompts for scores of {n}"
                )
        never = np.asarray(np.isnan(data.scores).all(axis=0))
        if never.any():
            missing = ", ".join(m for m, gone in zip(data.models, never, strict=True) if gone)
            raise InputError(
                f"router {self.name!r}: no training outcome for {missing}; "
                "drop the model or collect outcomes for it"
            )
        if self.needs_embeddings and not np.isfinite(data.embeddings).all():
            raise InputError(f"router {self.name!r}: embeddings hold NaN or infinity")
        if self.needs_domains and data.domains is None:
            raise InputError(
                f"router {self.name!r} learns from the 'domain' column, which the table lacks; "
                "add the column or choose another router"
            )


def column_means(values: Float) -> npt.NDArray[np.float64]:
    """Mean of each column over its finite cells, 0 where there is none; shape (N, K) -> (K,)."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=0, dtype=np.float64)
    return np.asarray(total / np.maximum(known.sum(axis=0), 1))
