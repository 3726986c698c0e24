"""Prompts to language models: outcome tables, pools, encoders, routers, decision rules, arena.

The public names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossroads.prompts.budget import PacedBudget, fit_budget
    from crossroads.prompts.cascade import Cascade, fit_cascade
    from crossroads.prompts.decide import (
        Argmax,
        BudgetRule,
        DecisionRule,
        MaxCost,
        MinQuality,
        Tradeoff,
        parse_rule,
    )
    from crossroads.prompts.embedded import load_embedded
    from crossroads.prompts.features import queries, table_features, training_set
    from crossroads.prompts.fitted import FittedRouter, fit_router, load_router, save_router
    from crossroads.prompts.outcomes import OutcomeTable
    from crossroads.prompts.pool import ModelCard, Pool, read_pool, shipped_pools
    from crossroads.prompts.readers import read_outcomes, shipped_tables, write_outcomes
    from crossroads.prompts.router import PromptRouter, Queries, TrainingSet
    from crossroads.prompts.routers import build_router, router_class, router_names
    from crossroads.prompts.taxonomy import describe, taxonomy

__all__ = [
    "Argmax",
    "BudgetRule",
    "Cascade",
    "DecisionRule",
    "FittedRouter",
    "MaxCost",
    "MinQuality",
    "ModelCard",
    "OutcomeTable",
    "PacedBudget",
    "Pool",
    "PromptRouter",
    "Queries",
    "Tradeoff",
    "TrainingSet",
    "build_router",
    "describe",
    "fit_budget",
    "fit_cascade",
    "fit_router",
    "load_embedded",
    "load_router",
    "parse_rule",
    "queries",
    "read_outcomes",
    "read_pool",
    "router_class",
    "router_names",
    "save_router",
    "shipped_pools",
    "shipped_tables",
    "table_features",
    "taxonomy",
    "training_set",
    "write_outcomes",
]

_HOMES = {
    "budget": ("PacedBudget", "fit_budget"),
    "cascade": ("Cascade", "fit_cascade"),
    "decide": (
        *("Argmax", "BudgetRule", "DecisionRule", "MaxCost", "MinQuality", "Tradeoff"),
        "parse_rule",
    ),
    "embedded": ("load_embedded",),
    "features": ("queries", "table_features", "training_set"),
    "fitted": ("FittedRouter", "fit_router", "load_router", "save_router"),
    "outcomes": ("OutcomeTable",),
    "pool": ("ModelCard", "Pool", "read_pool", "shipped_pools"),
    "readers": ("read_outcomes", "shipped_tables", "write_outcomes"),
    "router": ("PromptRouter", "Queries", "TrainingSet"),
    "routers": ("build_router", "router_class", "router_names"),
    "taxonomy": ("describe", "taxonomy"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
