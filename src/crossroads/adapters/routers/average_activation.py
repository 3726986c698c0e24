"""Average activation: an expert's gate is the mean input of its own training texts.

Scored and mixed as PHATGOOSE's gates are, without training any. Source: the baseline of Learning to
Route Among Specialized Experts (Muqeeth et al. 2024); ``crossroads.adapters.activations`` records
the means.
"""

from __future__ import annotations

from typing import ClassVar

from crossroads.adapters.routers.phatgoose import Phatgoose


class AverageActivation(Phatgoose):
    """Top-k of LN(x) . LN(mean input of expert e) / sqrt(d)."""

    name: ClassVar[str] = "average-activation"
    artifact: ClassVar[str] = "activation"
    artifacts: ClassVar[frozenset[str]] = frozenset({"activation"})
    survey_row: ClassVar[str | None] = "Average Activation"
