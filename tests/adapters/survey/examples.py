"""Cells for tests: legal ones, drawn at random or with a few changes."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from crossroads.adapters.survey.schema import AXES, Cells

PHATGOOSE: dict[str, Any] = {
    "expert_training": "Custom",
    "expert_data": "Private",
    "routing_dataset": "None",
    "input_granularity": "Step",
    "depth_granularity": "Module",
    "expert_selection": "Sparse",
    "expert_aggregation": "Output",
    "generalization": "Out-of-Distribution",
    "user_dataset": "Zero-Shot",
}

any_cells = st.builds(
    Cells, **{name: st.sampled_from(list(axis.values)) for name, axis in AXES.items()}
)


def cells(**changes: Any) -> Cells:
    return Cells(**{**PHATGOOSE, **changes})
