"""Verification: may this prediction be trusted? Accept it, escalate it, or abstain.

A ``Verifier`` learns from labelled vectors which predictions are reliable at a stated level and
answers for new ones, with the nearest labelled examples as evidence. It knows nothing of routers:
``crossroads.prompts.route_verification`` asks it about a router's choices.

The estimator is that of Similarity-Distance-Magnitude Activations (2025); ``calibration="index"``
is the earlier one of Universal Verification (arXiv 2502.20167).

What it cannot do: a prompt of another subject that lies among the labelled ones in the embedding
is not recognised as foreign; and with labels hardly better than chance nothing is ever accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import numpy.typing as npt

from crossroads.core.calibration import (
    Estimate,
    IndexCalibration,
    SdmEstimator,
    SdmSettings,
    fit_estimators,
    unanimous,
)
from crossroads.core.errors import InputError, unknown_name
from crossroads.core.progress import Progress

Float = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Arrays = dict[str, npt.NDArray[Any]]
Method = Literal["sdm", "index"]
Answer = Literal["accept", "escalate", "abstain"]

METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exemplar:
    """A labelled example that lies near.

    Attributes
    ----------
    id : as given when fitting; ``added`` for support appended later
    distance : L2, in the space the verifier learnt
    label : its true class, -1 for a repellent
    matches : whether it was predicted rightly, and as the point at hand
    """

    id: str
    distance: float
    label: int
    matches: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """The answer for one prediction.

    Attributes
    ----------
    answer : ``accept``, ``escalate`` (known ground, not reliable enough) or ``abstain`` (out of
        distribution: the nearest labelled example does not match, or lies too far)
    prediction : class the verifier predicts
    probability : of that class, at the cautious end of its band
    similarity : q, nearest neighbours in a row that match
    distance : d in [0, 1], 1 = as near as any, 0 = farther than all calibration points
    level : accuracy asked of what is accepted
    exemplars : nearest labelled examples, nearest first
    """

    answer: Answer
    prediction: int
    probability: float
    similarity: int
    distance: float
    level: float
    exemplars: tuple[Exemplar, ...] = ()

    @property
    def accepted(self) -> bool:
        return self.answer == "accept"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**asdict(self), "exemplars": [asdict(e) for e in self.exemplars]}


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """Judges predictions by labelled examples like them.

    Attributes
    ----------
    estimators : best first; the first decides
    ids : of the fitted rows, for naming exemplars
    method : ``sdm`` or ``index``
    accepting : the class whose prediction may be accepted, None for any
    all_agree : accept only what every estimator admits with the same class (``sdm`` only)
    """

    estimators: tuple[SdmEstimator, ...]
    ids: npt.NDArray[np.str_]
    method: Method = "sdm"
    accepting: int | None = None
    all_agree: bool = False
    index: IndexCalibration | None = None

    @classmethod
    def fit(
        cls,
        embeddings: Float,
        labels: npt.ArrayLike,
        *,
        num_classes: int = 2,
        level: float = 0.95,
        method: Method = "sdm",
        accepting: int | None = None,
        all_agree: bool = False,
        ids: Sequence[str] | None = None,
        groups: npt.ArrayLike | None = None,
        most_per_class: int = 2000,
        settings: SdmSettings | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Self:
        """Fit on vectors (N, D) and their true classes (N,), in [0, ``num_classes``).

        Classes are balanced first: of each, as many rows as the rarest has, at most
        ``most_per_class``, drawn with ``seed``. The rest is not used. Half of those becomes
        support, half calibration; copies and rows of one group (``groups``) stay together.

        ``level`` lies in (1/2, 1] and is the accuracy aimed at, given the true class and given the
        predicted one, among what is admitted; on data like these with classes in equal number.

        Raises InputError for rows that cannot be learnt from, UsageError for an unknown method.
        """
        check_method(method)
        label = np.asarray(labels, dtype=np.int64)
        if ids is not None and len(ids) != len(label):
            raise InputError(f"verifier: {len(ids)} ids for {len(label)} labels")
        rows = balanced_rows(label, most_per_class, np.random.default_rng(seed))
        names = np.arange(len(label)).astype(str) if ids is None else np.array(ids, dtype=str)
        x = np.asarray(embeddings)
        estimators = fit_estimators(
            x[rows],
            label[rows],
            num_classes=num_classes,
            level=level,
            settings=settings,
            group_N=None if groups is None else np.asarray(groups)[rows],
            seed=seed,
            progress=progress,
        )
        return cls._of(
            estimators, ids=names[rows], method=method, accepting=accepting, all_agree=all_agree
        )

    @classmethod
    def _of(cls, estimators: Sequence[SdmEstimator], **facts: Any) -> Self:
        index = IndexCalibration.fit(estimators) if facts["method"] == "index" else None
        return cls(estimators=tuple(estimators), index=index, **facts)

    @property
    def level(self) -> float:
        return self.estimators[0].region.level

    @property
    def least_similarity(self) -> float:
        """Threshold of the effective similarity; infinity accepts nothing."""
        if self.index is not None:
            return self.index.least_similarity
        return self.estimators[0].region.least_similarity

    @property
    def is_empty(self) -> bool:
        """Whether nothing is ever accepted: the task is too hard for the level."""
        return not np.isfinite(self.least_similarity)

    @property
    def num_rows(self) -> int:
        """Labelled rows used, support and calibration together."""
        return len(self.ids)

    def at_level(self, level: float) -> Verifier:
        """Return the verifier for another level, thresholds read again, nothing retrained."""
        return self._of([e.at_level(level) for e in self.estimators], **self._facts())

    def with_support(self, embeddings: Float, labels: npt.ArrayLike) -> Verifier:
        """Return the verifier with more labelled examples, not retrained.

        A label that is no class, such as -1, marks ground to stay off: it repels all near it.
        """
        more = [e.with_support(embeddings, labels) for e in self.estimators]
        return self._of(more, **self._facts())

    def _facts(self) -> dict[str, Any]:
        names = ("ids", "method", "accepting", "all_agree")
        return {name: getattr(self, name) for name in names}

    def accepts(self, embeddings: Float) -> Bools:
        """Return where the answer is ``accept``, shape (N,)."""
        return np.array([v.accepted for v in self.verify(embeddings, num_exemplars=0)], dtype=bool)

    def verify(self, embeddings: Float, *, num_exemplars: int = 3) -> list[Verification]:
        """Answer for N vectors. Raises InputError for vectors of another width, NaN, infinity."""
        x = np.asarray(embeddings)
        if len(x) == 0:
            return []
        best = self.estimators[0]
        found = best.estimate(x)
        admitted, probability = self._admitted(x, found)
        exemplars = self._exemplars(x, found, num_exemplars)
        return [
            Verification(
                answer=self._answer(bool(admitted[n]), found, n),
                prediction=int(found.prediction[n]),
                probability=float(probability[n]),
                similarity=int(found.similarity[n]),
                distance=float(found.distance[n]),
                level=self.level,
                exemplars=exemplars[n],
            )
            for n in range(len(x))
        ]

    def _admitted(self, x: Float, found: Estimate) -> tuple[Bools, Float]:
        if self.index is not None:
            ranked = self.index.estimate(x)
            return ranked.admitted, ranked.probability
        probability = found.lower_probability.max(axis=1)
        if not self.all_agree:
            return found.admitted, probability
        return unanimous([found, *(e.estimate(x) for e in self.estimators[1:])]), probability

    def _answer(self, admitted: bool, found: Estimate, n: int) -> Answer:
        if found.out_of_distribution[n]:
            return "abstain"
        wanted = self.accepting is None or found.prediction[n] == self.accepting
        return "accept" if admitted and wanted else "escalate"

    def _exemplars(self, x: Float, found: Estimate, count: int) -> list[tuple[Exemplar, ...]]:
        if count < 1:
            return [()] * len(x)
        support = self.estimators[0].support
        points, distance = self.estimators[0].exemplars(x, count)
        return [
            tuple(
                Exemplar(
                    id=str(self.ids[support.row[s]]) if support.row[s] >= 0 else "added",
                    distance=float(gap),
                    label=int(support.label[s]),
                    matches=bool(support.label[s] == support.prediction[s] == found.prediction[n]),
                )
                for s, gap in zip(points[n], distance[n], strict=True)
            )
            for n in range(len(x))
        ]

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Return plain facts and arrays without Python objects."""
        facts = {
            "method": self.method,
            "accepting": self.accepting,
            "all_agree": self.all_agree,
            "num_estimators": len(self.estimators),
        }
        arrays: Arrays = {"ids": self.ids}
        for j, estimator in enumerate(self.estimators):
            arrays |= {f"{j}.{name}": array for name, array in estimator.state().items()}
        return facts, arrays

    @classmethod
    def restore(cls, facts: dict[str, Any], arrays: Arrays) -> Self:
        """Rebuild it from ``state``. Raises LookupError, ValueError or TypeError for damage."""
        estimators = []
        for j in range(facts["num_estimators"]):
            start = f"{j}."
            own = {k.removeprefix(start): a for k, a in arrays.items() if k.startswith(start)}
            estimators.append(SdmEstimator.restore(own))
        if not estimators or facts["method"] not in METHODS:
            raise ValueError(f"a verifier of {len(estimators)} estimators by {facts['method']!r}")
        kept = {name: facts[name] for name in ("method", "accepting", "all_agree")}
        return cls._of(estimators, ids=arrays["ids"], **kept)


def check_method(name: str) -> Method:
    """Return the calibration of this name. Raises UsageError with the nearest spelling."""
    if name not in METHODS:
        raise unknown_name("calibration", name, METHODS)
    return cast(Method, name)


def balanced_rows(label_N: Ints, most_per_class: int, rng: np.random.Generator) -> Ints:
    """Return rows with as many of each class present as of the rarest, in ascending order."""
    classes, counts = np.unique(label_N, return_counts=True)
    size = min(int(counts.min(initial=most_per_class)), most_per_class)
    picks = [rng.permutation(np.flatnonzero(label_N == c))[:size] for c in classes]
    return np.sort(np.concatenate(picks)) if picks else np.zeros(0, np.int64)
