"""What of the telemetry can be set."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from crossroads.gateway.settings import Section

Level = Literal["debug", "info", "warning", "error"]


class LogSettings(Section):
    """Structured logs: one JSON object a line for every call, and for every warning of ours."""

    level: Level = Field(
        default="info", description="least severity; info has every call, warning failed ones"
    )
    sample: float = Field(
        default=1.0, ge=0, le=1, description="share of successful calls logged; failures always are"
    )
    file: str | None = Field(default=None, description="appended to; standard error without")
    queue: int = Field(default=20_000, ge=100, description="lines waiting; more are dropped")
    flush_ms: int = Field(default=200, ge=10, le=10_000, description="between two writes")


class OtelSettings(Section):
    """OpenTelemetry over HTTP; needs the ``otel`` extra."""

    endpoint: str = Field(description="base URL of a collector, such as http://127.0.0.1:4318")
    service: str = Field(default="crossroads", min_length=1, description="service.name")
    sample: float = Field(
        default=1.0, ge=0, le=1, description="share of calls traced, where the client set no flag"
    )
    headers: dict[str, str] = Field(default_factory=dict, description="sent to the collector")
    queue: int = Field(default=20_000, ge=100, description="calls waiting; more are dropped")
    flush_ms: int = Field(default=1_000, ge=50, le=60_000, description="between two batches")
    metrics_s: float = Field(default=30.0, gt=0, le=600, description="between two metric exports")

    @field_validator("endpoint")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError(f"expected an http or https URL, got {value!r}")
        return value.rstrip("/")


class TelemetrySettings(Section):
    """The section ``telemetry``."""

    logs: LogSettings | None = Field(default=LogSettings(), description="null for none")
    otel: OtelSettings | None = None
    max_models: int = Field(default=200, ge=1, description="models with own series; others: other")
    max_keys: int = Field(default=200, ge=1, description="keys with own series; others: other")
    snapshot_s: float = Field(
        default=1.0, gt=0, le=60, description="between two snapshots for the other workers"
    )
    lag_ms: int = Field(default=100, ge=10, le=10_000, description="between two loop-lag probes")
    recent: int = Field(default=500, ge=0, le=100_000, description="calls kept in memory to show")
