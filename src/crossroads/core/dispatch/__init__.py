"""Dispatch of rows to experts: one kernel for mixture-of-experts layers and banks of adapters.

``swiglu_bank`` and ``mlp_bank`` run whole expert FFNs, ``swiglu_slots`` and ``mlp_slots`` the same
on one buffer per expert; ``plan_rows``, ``gather_rows``, ``grouped_linear`` and ``combine_rows``
are the pieces for experts of any other form.
"""

from crossroads.core.dispatch.activations import ACTIVATIONS, Activation
from crossroads.core.dispatch.banks import PATHS, Path, mlp_bank, swiglu_bank
from crossroads.core.dispatch.linear import grouped_linear
from crossroads.core.dispatch.rows import RowPlan, combine_rows, gather_rows, plan_rows
from crossroads.core.dispatch.slots import mlp_slots, swiglu_slots

__all__ = [
    "ACTIVATIONS",
    "PATHS",
    "Activation",
    "Path",
    "RowPlan",
    "combine_rows",
    "gather_rows",
    "grouped_linear",
    "mlp_bank",
    "mlp_slots",
    "plan_rows",
    "swiglu_bank",
    "swiglu_slots",
]
