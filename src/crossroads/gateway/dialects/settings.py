"""The section ``responses`` of the gateway's configuration."""

from __future__ import annotations

from pydantic import Field, field_validator

from crossroads.gateway.settings import Section

_SCHEMES = ("redis://", "rediss://", "unix://")


class ResponsesSettings(Section):
    """Where answers of ``/v1/responses`` are kept, so that they can be fetched and continued."""

    store: str = Field(
        default="memory", description="memory, none, or the URL of a Redis or Valkey server"
    )
    ttl_s: float = Field(
        default=3600.0, gt=0, le=30 * 86400, description="seconds a response is kept"
    )
    max_mib: float = Field(
        default=64.0,
        gt=0,
        le=65536,
        allow_inf_nan=False,
        description="MiB: of all responses in memory; of one response in Redis",
    )

    @field_validator("store")
    @classmethod
    def _known_store(cls, value: str) -> str:
        if value not in ("memory", "none") and not value.startswith(_SCHEMES):
            raise ValueError(
                "expected memory, none, or a URL that begins with redis://, rediss:// or unix://"
            )
        return value
