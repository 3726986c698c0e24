"""Composition of Experts (2024, arXiv 2412.01868): prompt -> category -> expert, within a budget.

The pieces: labels for prompts that have none (``labels``), how sure a category is
(``confidence``), the experts to keep and what each is for (``mapping``, ``compose``), the weights
to keep in fast memory (``cache``, ``stream``), and why not to learn the best expert of each
prompt (``jitter``). The router made of them is
``crossroads.prompts.routers.composition``.

Differences from the paper: scores are the table's, not a judge's win rates; the mapping is made on
predictions out of fold, so that the classifier never labels what it was trained on; confidence is a
vote share or an entropy with a threshold chosen out of fold.
"""

from crossroads.prompts.composition.cache import CacheCounts, ExpertCache, ExpertTooLargeError
from crossroads.prompts.composition.compose import Composition, category_means, compose
from crossroads.prompts.composition.confidence import choose_threshold, confidence
from crossroads.prompts.composition.jitter import Agreement, best_experts, neighbour_agreement
from crossroads.prompts.composition.labels import Expansion, category_codes, expand_labels
from crossroads.prompts.composition.mapping import (
    BudgetCurve,
    BudgetError,
    Mapping,
    budget_curve,
    enumerate_mapping,
    solve_mapping,
)
from crossroads.prompts.composition.sizes import model_sizes, parse_size, size_in_name
from crossroads.prompts.composition.stream import group_queue, replay

__all__ = [
    "Agreement",
    "BudgetCurve",
    "BudgetError",
    "CacheCounts",
    "Composition",
    "Expansion",
    "ExpertCache",
    "ExpertTooLargeError",
    "Mapping",
    "best_experts",
    "budget_curve",
    "category_codes",
    "category_means",
    "choose_threshold",
    "compose",
    "confidence",
    "enumerate_mapping",
    "expand_labels",
    "group_queue",
    "model_sizes",
    "neighbour_agreement",
    "parse_size",
    "replay",
    "size_in_name",
    "solve_mapping",
]
