"""Adapters on disk: in PEFT's layout, as banks, and mixtures of other libraries."""

from crossroads.adapters.layout.configuration import Left
from crossroads.adapters.layout.disk import (
    has_router,
    load_bank,
    load_router,
    read_bank,
    save_bank,
)
from crossroads.adapters.layout.merged import merged_by_router, merged_expert
from crossroads.adapters.layout.mixtures import (
    Mixture,
    read_hydralora,
    read_mixlora,
    read_poly,
)
from crossroads.adapters.layout.reading import Report, read_adapter
from crossroads.adapters.layout.writing import export_expert

__all__ = [
    "Left",
    "Mixture",
    "Report",
    "export_expert",
    "has_router",
    "load_bank",
    "load_router",
    "merged_by_router",
    "merged_expert",
    "read_adapter",
    "read_bank",
    "read_hydralora",
    "read_mixlora",
    "read_poly",
    "save_bank",
]
