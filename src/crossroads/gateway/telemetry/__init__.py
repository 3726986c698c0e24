"""Metrics, logs, traces and health of the gateway."""

from crossroads.gateway.telemetry.health import HealthCheck, compose_health
from crossroads.gateway.telemetry.history import History
from crossroads.gateway.telemetry.readings import Reading, Source, engine_source, health_source
from crossroads.gateway.telemetry.settings import LogSettings, OtelSettings, TelemetrySettings
from crossroads.gateway.telemetry.snapshot import Snapshot
from crossroads.gateway.telemetry.telemetry import GatewayTelemetry

__all__ = [
    "GatewayTelemetry",
    "HealthCheck",
    "History",
    "LogSettings",
    "OtelSettings",
    "Reading",
    "Snapshot",
    "Source",
    "TelemetrySettings",
    "compose_health",
    "engine_source",
    "health_source",
]
