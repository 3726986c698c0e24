"""Where the admin server listens and who may use it."""

from __future__ import annotations

import ipaddress
from typing import Self

from pydantic import Field, model_validator

from crossroads.gateway.settings import Section


class AdminSettings(Section):
    """The section ``admin``. Beyond loopback a token is a must."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8081, ge=0, le=65535, description="0 takes any free port")
    token: str | None = Field(
        default=None, description="at least 16 characters, usually ${CROSSROADS_ADMIN_TOKEN}"
    )
    session_hours: float = Field(
        default=12.0, gt=0, le=720, description="until a browser asks anew"
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="names under which browsers reach it, besides those of loopback"
    )
    body_bytes: int = Field(default=1 << 20, gt=0, description="largest request body")

    @property
    def is_exposed(self) -> bool:
        """Whether other machines can reach it."""
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True  # a name: what it resolves to may change

    @model_validator(mode="after")
    def _needs_token(self) -> Self:
        if self.token is not None and len(self.token) < 16:
            raise ValueError("token: expected at least 16 characters; try: openssl rand -hex 24")
        if self.is_exposed and self.token is None:
            raise ValueError(
                f"host {self.host!r} is reachable from other machines; set a token, "
                "or listen on 127.0.0.1"
            )
        return self
