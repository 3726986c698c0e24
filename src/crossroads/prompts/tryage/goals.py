"""What users want besides quality, as penalties of the experts, and the decision that weighs them.

    m* = argmin_k [ L_hat_k + sum_j lambda_j C_jk ]

Every C_j is scaled to [0, 1] over the pool: 0 for the expert that meets goal j best, 1 for the one
that meets it worst, 0 for all where they are equal. Tryage (2023, arXiv 2308.11601).
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, UsageError, unknown_name
from crossroads.core.preference import pareto_front
from crossroads.prompts.decide import Argmax
from crossroads.prompts.pool import Pool

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Goal = Callable[[Pool], npt.ArrayLike]
"""Returns how badly each expert meets the goal, shape (K,), in any unit; lower is better."""

RELEASED = "released:"  # a tag such as released:2024-05-13


def size(pool: Pool) -> Float64:
    """Return the logarithm of each expert's parameters. Raises InputError where one is unknown."""
    missing = [card.name for card in pool if card.parameters is None]
    if missing:
        raise InputError(
            f"goal 'size': no parameters for {', '.join(missing)}; add the field 'parameters' to "
            "their cards"
        )
    return np.log([float(card.parameters or 1) for card in pool])


def recency(pool: Pool) -> Float64:
    """Return each expert's age in days, read from a tag ``released:YYYY-MM-DD`` on its card.

    Ages count from the pool's youngest expert: scaled, they do not depend on today. Raises
    InputError where a card has no such tag or the date is none.
    """
    dates = [_release(card.name, card.tags) for card in pool]
    return np.array([(max(dates) - date).days for date in dates], dtype=np.float64)


def cost(pool: Pool) -> Float64:
    """Return what a call of 1,000 tokens each way costs, in the pool's unit."""
    return np.array([card.price(1000.0, 1000.0) for card in pool], dtype=np.float64)


GOALS: Mapping[str, Goal] = {"size": size, "recency": recency, "cost": cost}


def penalties(pool: Pool, weights: Mapping[str, float], goals: Mapping[str, Goal] = GOALS) -> Float:
    """Return ``sum_j lambda_j C_j`` of each expert, shape (K,).

    Only goals of non-zero weight are looked at. Raises UsageError for an unknown goal or a weight
    that is no number >= 0, InputError for values that are not one finite number an expert.
    """
    total_K = np.zeros(len(pool))
    for name, weight in weights.items():
        if name not in goals:
            raise unknown_name("goal", name, goals)
        if not (np.isfinite(weight) and weight >= 0):
            raise UsageError(f"goal {name!r}: expected a weight >= 0, got {weight!r}")
        if weight:
            total_K += weight * scaled(goals[name](pool), name=name, num_experts=len(pool))
    return total_K


def scaled(values: npt.ArrayLike, *, name: str, num_experts: int) -> Float64:
    """Scale K values to [0, 1], all to 0 where they are equal. Raises InputError."""
    value_K = np.asarray(values, dtype=np.float64)
    if value_K.shape != (num_experts,) or not np.isfinite(value_K).all():
        raise InputError(
            f"goal {name!r}: expected a finite number for each of {num_experts} experts, got "
            f"{values!r:.80}"
        )
    low, high = value_K.min(), value_K.max()
    return np.zeros(num_experts) if high <= low else (value_K - low) / (high - low)


@dataclass(frozen=True)
class LeastPenalisedLoss:
    """The expert of least predicted loss plus penalty; a ``DecisionRule``.

    Parameters
    ----------
    penalty : shape (K,), from ``penalties``, in the units of the losses (of quality, for routers
        that predict quality = 1 - loss)
    """

    penalty: Float

    def choose(self, quality_NK: Float, cost_NK: Float) -> Ints:
        """Return the chosen column per row, shape (N,); ties go to the cheaper expert."""
        return Argmax().choose(quality_NK - self.penalty, cost_NK)

    def __str__(self) -> str:
        return "least predicted loss and penalty"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What choices cost at P weights of one goal.

    Attributes
    ----------
    weights : shape (P,), increasing
    loss : shape (P,); mean true loss of the choices
    measure : shape (P,); mean of the experts' values for the goal, for instance parameters
    share : shape (P, K); share of the prompts each expert gets
    is_on_front : shape (P,); True where no other weight gives less of both
    """

    weights: Float64
    loss: Float64
    measure: Float64
    share: Float64
    is_on_front: npt.NDArray[np.bool_]


def sweep(
    predicted: Float,
    losses: Float,
    *,
    penalty: Float,
    measure: Float,
    weights: Sequence[float],
) -> Sweep:
    """Decide N prompts at each weight of a goal.

    ``predicted`` and true ``losses`` are (N, K); ``penalty`` (the scaled goal) and ``measure``
    (what to report, in its own unit) are (K,). As the weight grows the mean penalty never does.
    """
    weight_P = np.sort(np.asarray(weights, dtype=np.float64))
    num_prompts, num_experts = losses.shape
    share_PK = np.zeros((len(weight_P), num_experts))
    loss_P = np.zeros(len(weight_P))
    for p, weight in enumerate(weight_P):
        choice_N = LeastPenalisedLoss(weight * penalty).choose(-predicted, penalty)
        share_PK[p] = np.bincount(choice_N, minlength=num_experts) / num_prompts
        loss_P[p] = losses[np.arange(num_prompts), choice_N].mean()
    measure_P = share_PK @ np.asarray(measure, dtype=np.float64)
    front = pareto_front(np.column_stack([loss_P, measure_P]), maximise=False)
    return Sweep(
        weights=weight_P, loss=loss_P, measure=measure_P, share=share_PK, is_on_front=front
    )


def _release(name: str, tags: Sequence[str]) -> datetime.date:
    dated = [tag.removeprefix(RELEASED) for tag in tags if tag.startswith(RELEASED)]
    try:
        return datetime.date.fromisoformat(dated[0] if dated else "")
    except ValueError:
        found = repr(dated[0]) if dated else "none"
        raise InputError(
            f"goal 'recency': model {name!r} needs a tag {RELEASED}YYYY-MM-DD on its card, has "
            f"{found}"
        ) from None
