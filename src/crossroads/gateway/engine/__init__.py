"""Failure handling: retries, fallbacks, breakers, hedges, cascades, continuation, idempotency."""

from crossroads.gateway.engine.engine import Engine
from crossroads.gateway.engine.idempotency import Idempotency, Response, Slot, digest_of
from crossroads.gateway.engine.settings import (
    BreakerSettings,
    ContinuationSettings,
    EngineSettings,
    HedgeSettings,
    IdempotencySettings,
)

__all__ = [
    "BreakerSettings",
    "ContinuationSettings",
    "Engine",
    "EngineSettings",
    "HedgeSettings",
    "Idempotency",
    "IdempotencySettings",
    "Response",
    "Slot",
    "digest_of",
]
