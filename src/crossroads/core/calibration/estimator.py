"""Estimators: a trained adaptor with its support, its calibration set and its region.

``fit_estimators`` splits labelled vectors into halves J times and trains one estimator on each
split, the best first. One estimator decides alone, or all must agree (`unanimous`).

Axes: N rows, D input width, M exemplar width, S support points, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from crossroads.core.calibration.activation import Adaptor, Arrays, sdm
from crossroads.core.calibration.neighbours import (
    DistanceQuantiles,
    Support,
    nearest_points,
    neighbourhood,
)
from crossroads.core.calibration.region import (
    Region,
    band,
    effective_similarity,
    find_region,
)
from crossroads.core.calibration.training import SdmSettings, Trained, train
from crossroads.core.errors import InputError
from crossroads.core.progress import Progress

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What one estimator says about N rows.

    Attributes
    ----------
    prediction : int64 (N,), likeliest class by magnitude
    logit : float32 (N, C)
    similarity : int64 (N,), q
    distance : float64 (N,), d
    nearest_distance : float64 (N,), L2 in exemplar space
    probability : float64 (N, C), the activation
    effective : float64 (N,), q'
    lower_probability, lower_effective : the same with d at the lower end of its sampling band
    admitted : bool (N,), inside the region at the lower end
    """

    prediction: Ints
    logit: npt.NDArray[np.float32]
    similarity: Ints
    distance: Float64
    nearest_distance: Float64
    probability: Float64
    effective: Float64
    lower_probability: Float64
    lower_effective: Float64
    admitted: Bools

    @property
    def out_of_distribution(self) -> Bools:
        """Shape (N,): the nearest support point does not match, or all are too far.

        The second, a distance of 0, is our addition: such a point is never admitted either.
        """
        return np.asarray((self.effective < 1) | (self.distance == 0))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The calibration half as the estimator saw it; everything thresholds are read from.

    Attributes
    ----------
    logit : float32 (N, C)
    similarity, distance : int64 and float64 (N,)
    label : int64 (N,)
    """

    logit: npt.NDArray[np.float32]
    similarity: Ints
    distance: Float64
    label: Ints

    @cached_property
    def probability(self) -> Float64:
        """The activation, float64 (N, C)."""
        return sdm(self.logit, self.similarity, self.distance)

    @cached_property
    def effective(self) -> Float64:
        """Effective similarities, float64 (N,)."""
        chosen = self.probability[np.arange(len(self.label)), self.logit.argmax(axis=1)]
        return effective_similarity(self.similarity, chosen)

    @cached_property
    def effective_by_class(self) -> tuple[Float64, ...]:
        """Effective similarities of each true class, ascending."""
        classes = range(self.logit.shape[1])
        return tuple(np.sort(self.effective[self.label == c]) for c in classes)


@dataclass(frozen=True, kw_only=True)
class SdmEstimator:
    """One trained adaptor and what is needed to judge a point with it.

    Attributes
    ----------
    adaptor, support, quantiles : see their modules
    calibration : the held half
    region : thresholds at the stated level
    depth : cap of the similarity
    loss : class-balanced calibration loss; lower is better
    """

    adaptor: Adaptor
    support: Support
    quantiles: DistanceQuantiles
    calibration: Calibration
    region: Region
    depth: int
    loss: float

    @classmethod
    def of(cls, trained: Trained, row_S: Ints, label_N: Ints, *, level: float, depth: int) -> Self:
        """Build it from a trained adaptor, its rows in the data and its calibration labels."""
        calibration = Calibration(
            logit=trained.logit,
            similarity=trained.similarity,
            distance=trained.distance,
            label=label_N,
        )
        return cls(
            adaptor=trained.adaptor,
            support=replace(trained.support, row=row_S),
            quantiles=trained.quantiles,
            calibration=calibration,
            region=_region(calibration, level),
            depth=depth,
            loss=trained.loss,
        )

    @property
    def num_classes(self) -> int:
        return self.adaptor.num_classes

    def at_level(self, level: float) -> SdmEstimator:
        """Return the estimator with its region searched again at another level."""
        return replace(self, region=_region(self.calibration, level))

    def with_support(self, x_ND: Float, label_N: npt.ArrayLike) -> SdmEstimator:
        """Return the estimator with further labelled points in its support, not retrained.

        A label outside [0, C) makes a point a repellent: it ends the similarity of all near it.
        Quantiles and region stay those of the calibration half.
        """
        label = np.asarray(label_N, dtype=np.int64)
        if label.shape != (len(x_ND),):
            raise InputError(f"support: {len(x_ND)} vectors for labels of shape {label.shape}")
        exemplar = self.adaptor.exemplars(x_ND)
        prediction = self.adaptor.logits(exemplar).argmax(axis=1)
        return replace(self, support=self.support.with_points(exemplar, prediction, label))

    def estimate(self, x_ND: Float) -> Estimate:
        """Judge N rows. Raises InputError for vectors of another width, NaN or infinity."""
        exemplar = self.adaptor.exemplars(x_ND)
        logit = self.adaptor.logits(exemplar)
        prediction = logit.argmax(axis=1).astype(np.int64)
        found = neighbourhood(exemplar, prediction, self.support, depth=self.depth)
        distance = self.quantiles.distance(found.nearest_distance)
        activate = partial(self._activate, logit, prediction, found.similarity)
        probability, effective = activate(distance)
        eps = band(effective, self.calibration.effective_by_class, self.region.level)
        lower_probability, lower_effective = activate(np.maximum(distance - eps, 0))
        return Estimate(
            prediction=prediction,
            logit=logit,
            similarity=found.similarity,
            distance=distance,
            nearest_distance=found.nearest_distance,
            probability=probability,
            effective=effective,
            lower_probability=lower_probability,
            lower_effective=lower_effective,
            admitted=self.region.admits(lower_effective, lower_probability),
        )

    def exemplars(self, x_ND: Float, count: int) -> tuple[Ints, Float64]:
        """Return the nearest support points of each row, (N, count), and L2 distances to them."""
        return nearest_points(self.adaptor.exemplars(x_ND), self.support, count)

    def _activate(
        self, logit: Float, prediction: Ints, similarity: Ints, distance: Float64
    ) -> tuple[Float64, Float64]:
        probability = sdm(logit, similarity, distance)
        chosen = probability[np.arange(len(prediction)), prediction]
        return probability, effective_similarity(similarity, chosen)

    def state(self) -> Arrays:
        """Return everything as arrays without Python objects."""
        lengths = [len(s) for s in self.quantiles.sorted_distance]
        parts: dict[str, Any] = {"support": self.support, "calibration": self.calibration}
        return {
            **{f"adaptor.{name}": array for name, array in self.adaptor.state().items()},
            **{
                f"{part}.{f.name}": getattr(value, f.name)
                for part, value in parts.items()
                for f in fields(value)
            },
            "quantiles.distance": np.concatenate(self.quantiles.sorted_distance),
            "quantiles.length": np.array(lengths, dtype=np.int64),
            "facts": np.array([self.region.level, self.depth, self.loss]),
        }

    @classmethod
    def restore(cls, arrays: Arrays) -> Self:
        """Rebuild it from ``state``; the region is searched again. Raises KeyError, ValueError."""

        def part(name: str, kind: type[Any]) -> Any:
            return kind(**{f.name: arrays[f"{name}.{f.name}"] for f in fields(kind)})

        level, depth, loss = arrays["facts"].tolist()
        ends = np.cumsum(arrays["quantiles.length"])[:-1]
        calibration: Calibration = part("calibration", Calibration)
        return cls(
            adaptor=part("adaptor", Adaptor),
            support=part("support", Support),
            quantiles=DistanceQuantiles(
                sorted_distance=tuple(np.split(arrays["quantiles.distance"], ends))
            ),
            calibration=calibration,
            region=_region(calibration, level),
            depth=int(depth),
            loss=loss,
        )


def _region(calibration: Calibration, level: float) -> Region:
    return find_region(calibration.effective, calibration.probability, calibration.label, level)


def fit_estimators(
    x_ND: Float,
    label_N: npt.ArrayLike,
    *,
    num_classes: int,
    level: float = 0.95,
    settings: SdmSettings | None = None,
    group_N: npt.ArrayLike | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[SdmEstimator]:
    """Train one estimator a restart on random halves; the least calibration loss comes first.

    Raises InputError for rows that cannot be learnt from.

    Parameters
    ----------
    x_ND : vectors, finite
    label_N : true classes, whole numbers in [0, C), each present
    level : see ``region.check_level``
    group_N : rows of one group, for instance copies of a text, stay in one half; equal vectors
        always do
    progress : epochs done of epochs in all
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    chosen = settings or SdmSettings()
    x = np.asarray(x_ND, dtype=np.float32)
    label = _checked_labels(x, label_N, num_classes)
    rng = np.random.default_rng(seed)
    done, total = iter(range(1, chosen.restarts * chosen.epochs + 1)), chosen.restarts

    def tick() -> None:
        now = next(done)
        if progress:
            progress(now, total * chosen.epochs)

    found = []
    with threadpool_limits(1):  # the products of a batch are small: further threads only wait
        for _ in range(chosen.restarts):
            fit, held = split_halves(x, label, group_N, rng)
            trained = train(
                x[fit],
                label[fit],
                x[held],
                label[held],
                num_classes=num_classes,
                settings=chosen,
                rng=rng,
                after_epoch=tick,
            )
            found.append(
                SdmEstimator.of(trained, fit, label[held], level=level, depth=chosen.depth)
            )
    return sorted(found, key=lambda estimator: estimator.loss)


def unanimous(estimates: Sequence[Estimate]) -> Bools:
    """Return which rows every estimator admits with the same prediction, shape (N,)."""
    first = estimates[0].prediction
    agreed = [e.admitted & (e.prediction == first) for e in estimates]
    return np.asarray(np.all(agreed, axis=0))


def split_halves(
    x_ND: npt.NDArray[np.float32],
    label_N: Ints,
    group_N: npt.ArrayLike | None,
    rng: np.random.Generator,
) -> tuple[Ints, Ints]:
    """Return the rows of two random halves that share no group and no vector.

    Raises InputError where a half would lack a class.
    """
    together = _connected(x_ND, group_N)
    half = rng.permutation(np.arange(together.max() + 1) % 2)[together]
    halves = np.flatnonzero(half == 0), np.flatnonzero(half == 1)
    for rows in halves:
        lacking = np.setdiff1d(label_N, label_N[rows])
        if len(lacking):
            raise InputError(
                f"calibration: too few distinct rows of class {lacking[0]} to have some in both "
                "halves; give more labelled rows"
            )
    return halves


def _connected(x_ND: npt.NDArray[np.float32], group_N: npt.ArrayLike | None) -> Ints:
    """Return a number for each row, the same for rows that may not be parted."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, vector_N = np.unique(x_ND, axis=0, return_inverse=True)
    vector_N = vector_N.ravel()
    if group_N is None:
        return vector_N.astype(np.int64)
    _, given_N = np.unique(np.asarray(group_N), return_inverse=True)
    size = int(vector_N.max()) + 1 + int(given_N.max()) + 1
    links = coo_array(
        (np.ones(len(x_ND)), (vector_N, given_N.ravel() + vector_N.max() + 1)), shape=(size, size)
    )
    _, component = connected_components(links, directed=False)
    _, number_N = np.unique(component[vector_N], return_inverse=True)
    return np.asarray(number_N.ravel(), dtype=np.int64)


def _checked_labels(
    x_ND: npt.NDArray[np.float32], label_N: npt.ArrayLike, num_classes: int
) -> Ints:
    label = np.asarray(label_N, dtype=np.int64)
    if x_ND.ndim != 2 or label.shape != (len(x_ND),):
        raise InputError(
            f"calibration: expected vectors (N, D) and labels (N,), got {x_ND.shape} and "
            f"{label.shape}"
        )
    if not np.isfinite(x_ND).all():
        raise InputError("calibration: the vectors hold NaN or infinity; remove those rows")
    count = np.bincount(label[(label >= 0) & (label < num_classes)], minlength=num_classes)
    if count.sum() < len(label):
        raise InputError(f"calibration: labels must lie in [0, {num_classes})")
    if count.min() < 2:
        raise InputError(
            f"calibration: class {count.argmin()} has {count.min()} rows; give both outcomes, "
            "more rows, or nothing to calibrate is left"
        )
    return label
