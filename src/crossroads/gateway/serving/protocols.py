"""Which protocol serves connections."""

from __future__ import annotations

import asyncio

from crossroads.gateway.serving.settings import FrontSettings


def http_protocol(settings: FrontSettings) -> type[asyncio.Protocol]:
    """Return the class for uvicorn's ``http=`` that keeps these limits.

    ``uvicorn.Config(app, http=http_protocol(settings), ws="none", lifespan="off", ...)``
    """
    name = "HttpProtocol"
    if settings.http == "fast":
        from crossroads.gateway.serving.fast import FastHttpProtocol

        return type(name, (FastHttpProtocol,), {"settings": settings, "__slots__": ()})
    from crossroads.gateway.serving.guarded import GuardedHttpProtocol

    return type(name, (GuardedHttpProtocol,), {"settings": settings})
