"""One cascade: which models are asked in which order, and what it takes to stop.

Shapes: N prompts, K models of the pool, L of them in the cascade.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, UnavailableError

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Acceptance = Float | Callable[[tuple[int, ...]], Float]
"""What a verifier says of each model's answer, (N, K); or that, as a function of a cascade's order,
for verifiers that compare an answer with those before it."""

Ask = Callable[[str], tuple[str, float]]
"""Sends a prompt to a model; returns its answer and what the call cost in USD."""

Verify = Callable[[str, str, int], float]
"""Judges (prompt, answer, column of the model); higher is better."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a cascade did on N recorded prompts.

    Attributes
    ----------
    chosen_N : column whose answer was taken
    num_calls_N : models asked, >= 1
    cost_N : sum of the costs of all of them
    """

    chosen_N: Ints
    num_calls_N: Ints
    cost_N: Float64


@dataclass(frozen=True, kw_only=True)
class Call:
    """One model asked. ``acceptance`` is None where nobody judged: a failure, or the last model."""

    model: int
    answer: str | None
    cost_usd: float
    acceptance: float | None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt answered by a cascade."""

    answer: str
    model: int
    calls: tuple[Call, ...]

    @property
    def cost_usd(self) -> float:
        """The sum over all calls made, not only the one whose answer was taken."""
        return sum(call.cost_usd for call in self.calls)


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """Ask the models of ``order`` in turn; stop at the first answer judged at its threshold.

    The answer of the last model is always taken.

    Parameters
    ----------
    order : columns of the pool, L >= 1, each once; usually by rising cost
    thresholds : tau, L - 1 of them; -inf takes every answer, inf none (the call is paid still)
    """

    order: tuple[int, ...]
    thresholds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.order or len(set(self.order)) != len(self.order) or min(self.order) < 0:
            raise InputError(f"cascade: expected different columns >= 0, got {self.order!r}")
        if len(self.thresholds) != len(self.order) - 1:
            raise InputError(
                f"cascade: expected {len(self.order) - 1} thresholds for {len(self.order)} models, "
                f"got {len(self.thresholds)}"
            )
        if any(np.isnan(tau) for tau in self.thresholds):
            raise InputError("cascade: a threshold is NaN; use -inf to take all answers, inf none")

    def replay(self, acceptance_NK: Float, cost_NK: Float) -> Replay:
        """Play the cascade on recorded answers.

        Raises InputError for shapes that disagree, columns that do not exist, or NaN.

        Parameters
        ----------
        acceptance_NK : what the verifier says of each model's answer, without NaN in the columns
            that are judged
        cost_NK : cost of each call, (N, K) or (K,)
        """
        acceptance, cost = checked(acceptance_NK, cost_NK, self.order)
        n = len(acceptance)
        chosen = np.full(n, self.order[-1], dtype=np.int64)
        calls = np.zeros(n, dtype=np.int64)
        paid = np.zeros(n)
        open_N = np.ones(n, dtype=bool)
        for column, tau in zip(self.order, (*self.thresholds, -np.inf), strict=True):
            calls += open_N
            paid += np.where(open_N, cost[:, column], 0.0)
            taken = open_N & (acceptance[:, column] >= tau)
            chosen[taken] = column
            open_N &= ~taken
        return Replay(chosen_N=chosen, num_calls_N=calls, cost_N=paid)

    def ask(self, prompt: str, models: Sequence[Ask], verify: Verify) -> Asked:
        """Answer one prompt with live models; ``models`` has one callable for each column.

        A model that is unavailable is passed over, as an answer that was not good enough. Where the
        last one fails, the best judged answer so far is taken; without any its UnavailableError is
        raised.
        """
        calls: list[Call] = []
        for column, tau in zip(self.order, (*self.thresholds, None), strict=True):
            try:
                answer, usd = models[column](prompt)
            except UnavailableError as error:
                calls.append(
                    Call(model=column, answer=None, cost_usd=0.0, acceptance=None, error=str(error))
                )
                if tau is None and all(call.answer is None for call in calls):
                    raise
                continue
            judged = None if tau is None else float(verify(prompt, answer, column))
            calls.append(Call(model=column, answer=answer, cost_usd=usd, acceptance=judged))
            if tau is None or (judged is not None and judged >= tau):
                return Asked(answer=answer, model=column, calls=tuple(calls))
        best = max((c for c in calls if c.acceptance is not None), key=_acceptance)
        return Asked(answer=best.answer or "", model=best.model, calls=tuple(calls))


def _acceptance(call: Call) -> float:
    return -np.inf if call.acceptance is None else call.acceptance


def acceptance_of(acceptance: Acceptance, order: Sequence[int]) -> Float:
    """Return the acceptance of the answers in a cascade of this order, (N, K)."""
    return acceptance(tuple(order)) if callable(acceptance) else acceptance


def checked(acceptance_NK: Float, cost_NK: Float, order: Sequence[int]) -> tuple[Float64, Float64]:
    """Return both as float64 (N, K). Raises InputError as ``Cascade.replay``."""
    acceptance = np.asarray(acceptance_NK, dtype=np.float64)
    if acceptance.ndim != 2 or len(acceptance) == 0:
        raise InputError(f"cascade: expected acceptance of shape (N, K), got {acceptance.shape}")
    try:
        cost = np.broadcast_to(np.asarray(cost_NK, dtype=np.float64), acceptance.shape)
    except ValueError:
        raise InputError(
            f"cascade: costs of shape {np.shape(cost_NK)} for acceptance {acceptance.shape}"
        ) from None
    if max(order) >= acceptance.shape[1]:
        raise InputError(
            f"cascade: column {max(order)} is asked, the pool has {acceptance.shape[1]} models"
        )
    columns = list(order)
    if np.isnan(acceptance[:, columns[:-1]]).any() or not np.isfinite(cost[:, columns]).all():
        raise InputError("cascade: acceptance or costs hold NaN; drop those prompts")
    return acceptance, cost
