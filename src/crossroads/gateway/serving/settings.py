"""The section ``front`` of the configuration: what one connection may take."""

from __future__ import annotations

from pydantic import Field

from crossroads.gateway.settings import Section


class FrontSettings(Section):
    """Limits of the HTTP server. The size of bodies is limited by ``limits.body_bytes``."""

    header_s: float = Field(default=10.0, gt=0, le=600, description="to send request and headers")
    body_s: float = Field(default=60.0, gt=0, le=3600, description="to send the body")
    keep_alive_s: float = Field(
        default=75.0, gt=0, le=3600, description="idle between requests; beyond most balancers' 60"
    )
    write_s: float = Field(
        default=60.0, gt=0, le=3600, description="a client may leave an answer unread"
    )
    header_bytes: int = Field(default=32_768, ge=1024, le=1 << 20, description="of all headers")
    header_count: int = Field(default=128, ge=8, le=1000)
    max_connections: int = Field(default=10_000, ge=1, description="per worker; more get a 503")
