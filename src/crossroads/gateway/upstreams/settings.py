"""The section ``upstreams`` of the configuration."""

from __future__ import annotations

from pydantic import Field

from crossroads.gateway.settings import Section


class UpstreamSettings(Section):
    """What all upstreams have in common; what one needs for itself is on its card in the pool."""

    max_idle: int = Field(
        default=64, ge=0, le=10_000, description="unused connections kept to a server"
    )
    idle_s: float = Field(
        default=30.0, gt=0, le=3600, description="seconds an unused connection is kept"
    )
    max_waiting: int = Field(
        default=256, ge=0, le=100_000, description="calls that may wait at a model's max_parallel"
    )
    max_answer_mib: float = Field(
        default=64.0, gt=0, le=1024, description="longest answer, and longest event of a stream"
    )

    @property
    def max_answer_bytes(self) -> int:
        return int(self.max_answer_mib * (1 << 20))
