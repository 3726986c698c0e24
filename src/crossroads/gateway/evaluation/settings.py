"""The section ``evaluation`` of the gateway's configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from crossroads.gateway.settings import Section

Reward = Literal["feedback", "score", "preference", "complete"]


class EvaluationSettings(Section):
    """What the dashboard's live regret is computed from, and how often."""

    window_hours: float = Field(default=24.0, gt=0, description="hours of calls it looks back")
    every_s: float = Field(default=60.0, ge=1, description="seconds between computations")
    reward: Reward = Field(
        default="feedback", description="feedback, score, preference, or complete: see the docs"
    )
    level: float = Field(default=0.95, gt=0, lt=1, description="confidence level of the intervals")
    most_calls: int = Field(
        default=20_000, ge=100, description="latest judged calls that are looked at"
    )
