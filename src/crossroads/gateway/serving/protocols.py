"""Which protocol serves connections."""

from __future__ import annotations

import asyncio
from typing import Literal

from crossroads.gateway.serving.settings import FrontSettings


def http_protocol(
    kind: Literal["standard", "fast"] = "standard", settings: FrontSettings | None = None
) -> type[asyncio.Protocol]:
    """Return the class for uvicorn's ``http=`` that keeps these limits.

    ``standard`` is uvicorn's own protocol with limits, ``fast`` ours; both run plain ASGI
    applications over HTTP/1.1: ``uvicorn.Config(app, http=http_protocol("fast"), ws="none")``.
    """
    limits = {"settings": settings or FrontSettings()}
    if kind == "fast":
        from crossroads.gateway.serving.fast import FastHttpProtocol

        return type("FastHttpProtocol", (FastHttpProtocol,), {**limits, "__slots__": ()})
    from crossroads.gateway.serving.guarded import GuardedHttpProtocol

    return type("GuardedHttpProtocol", (GuardedHttpProtocol,), limits)
