"""From an outcome table and a pool to a composition: the experts to keep and what each is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.prompts.composition.labels import category_codes
from crossroads.prompts.composition.mapping import Mapping, solve_mapping
from crossroads.prompts.composition.sizes import model_sizes
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.pool import Pool
from crossroads.prompts.router import column_means

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, slots=True)
class Composition:
    """Experts kept under a budget and the categories each serves.

    Attributes
    ----------
    mapping : category -> expert
    score : mean score of the mapping on the prompts it was made from, categories being known
    best_single, best_single_score : the best expert that alone fits the budget
    parameters : size of each expert kept
    active_parameters : mean size of the expert that answers, over those prompts
    budget : in parameters
    """

    mapping: dict[str, str]
    score: float
    best_single: str
    best_single_score: float
    parameters: dict[str, float]
    active_parameters: float
    budget: float

    @property
    def total_parameters(self) -> float:
        return sum(self.parameters.values())


def compose(
    table: OutcomeTable,
    pool: Pool | None = None,
    budget: float = np.inf,
    *,
    shrink: float = 10.0,
) -> Composition:
    """Choose experts for the table's categories (its ``domain`` column) under a budget.

    Sizes come from the pool's cards, else from the models' names. Prompts without a category are
    left out. Raises InputError for a table without categories or a model without size, and what
    ``solve_mapping`` raises; see ``category_means`` for ``shrink``.
    """
    if table.domain is None:
        raise InputError("compose: the table has no 'domain' column; add a category a prompt")
    code_N, names = category_codes(table.domain)
    size_K = model_sizes(table.models, pool=pool)
    rows = np.flatnonzero(code_N >= 0)
    member_NC = np.asarray(code_N[rows, None] == np.arange(len(names)), dtype=np.float64)
    worth_CK = category_means(table.score[rows], member_NC, shrink)
    weight_C = member_NC.sum(axis=0)
    found = solve_mapping(worth_CK, weight_C, size_K, budget)
    single_K = np.where(size_K <= budget, weight_C @ worth_CK / weight_C.sum(), -np.inf)
    best = int(single_K.argmax())
    return Composition(
        mapping={c: table.models[e] for c, e in zip(names, found.expert, strict=True)},
        score=found.score,
        best_single=table.models[best],
        best_single_score=float(single_K[best]),
        parameters={table.models[e]: float(size_K[e]) for e in found.kept},
        active_parameters=active_parameters(found, weight_C, size_K),
        budget=float(budget),
    )


def category_means(score_NK: Float, member_NC: Float, shrink: float) -> Float64:
    """Return the mean score of each expert in each category, (C, K), NaN scores left out.

    ``member_NC`` says how far a prompt belongs to a category (one-hot, or probabilities). Means are
    shrunk towards the expert's overall mean by ``shrink`` prompts' worth of it, so that a category
    of few prompts, or none, says little.
    """
    known_NK = np.isfinite(score_NK).astype(np.float64)
    total_CK = member_NC.T @ np.where(known_NK > 0, score_NK, 0.0)
    shrink = max(shrink, 1e-9)
    return np.asarray(
        (total_CK + shrink * column_means(score_NK)) / (member_NC.T @ known_NK + shrink)
    )


def active_parameters(mapping: Mapping, weight_C: Float, size_K: Float) -> float:
    """Return the average active parameters: mean size of the expert that answers a prompt."""
    return float(np.average(size_K[mapping.expert], weights=weight_C))
