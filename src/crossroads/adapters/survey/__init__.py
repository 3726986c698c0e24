"""The survey "A Survey on Model MoErging" (arXiv 2408.07057) as data that can be asked.

``schema`` has its nine axes, ``inventory`` its methods, ``moerging`` answers questions about them.
Nothing here imports torch.
"""

from __future__ import annotations

from crossroads.adapters.survey.inventory import Method, row
from crossroads.adapters.survey.moerging import Match, Recommendation, methods, recommend
from crossroads.adapters.survey.schema import AXES, Axis, Cells, combining_modes
from crossroads.adapters.survey.situation import Situation, parse_situation

__all__ = [
    "AXES",
    "Axis",
    "Cells",
    "Match",
    "Method",
    "Recommendation",
    "Situation",
    "combining_modes",
    "methods",
    "parse_situation",
    "recommend",
    "row",
]
