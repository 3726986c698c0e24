"""How the survey "Doing More with Less" (arXiv 2502.00409) classifies a router.

A router states its place in this scheme as class attributes; the values are checked when a table is
made of them.
"""

from __future__ import annotations

from typing import Literal

Timing = Literal["pre-generation", "post-generation", "multi-stage"]
"""When it decides: from the query, after an answer was judged (a cascade), or both."""

Method = Literal["none", "similarity-based", "supervised", "reinforcement learning", "generative"]
"""By what it decides; ``none`` for baselines and bounds."""

Axis = Literal["any", "size", "domain", "modality", "pipeline"]
"""By what the candidates differ for the router to be of use."""

Needs = Literal[
    "nothing",
    "mean costs",
    "mean scores",
    "preference pairs",
    "bandit feedback",
    "full outcome table",
    "the outcomes to come",
]
"""What it learns from; the last is hindsight, which only a bound has."""

Adding = Literal["free", "few examples", "refit"]
"""What it takes to add a model to the pool."""
