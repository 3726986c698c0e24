"""How long an endpoint may take."""

from __future__ import annotations

from dataclasses import dataclass

from crossroads.core.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """Seconds to wait for each phase of a call.

    Attributes
    ----------
    connect : until the connection stands
    first_byte : from the request until the response's head
    idle : between two portions of a body; comments of a stream count as life
    total : the whole call, the time a slow reader takes included
    """

    connect: float = 5.0
    first_byte: float = 120.0
    idle: float = 60.0
    total: float = 600.0

    def __post_init__(self) -> None:
        for name in ("connect", "first_byte", "idle", "total"):
            if not getattr(self, name) > 0:
                raise InputError(f"timeout {name}: expected seconds > 0, got {getattr(self, name)}")
