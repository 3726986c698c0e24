"""The admin server: a JSON API and a dashboard on a port of its own."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from crossroads.gateway.admin.settings import AdminSettings
from crossroads.gateway.admin.sources import AdminSources, Reply

if TYPE_CHECKING:
    from crossroads.gateway.admin.app import build_admin
    from crossroads.gateway.admin.playground import in_process
    from crossroads.gateway.admin.server import AdminServer

__all__ = ["AdminServer", "AdminSettings", "AdminSources", "Reply", "build_admin", "in_process"]

# A configuration names the settings; a web framework is loaded where there is an admin server.
_MODULES = {"AdminServer": "server", "build_admin": "app", "in_process": "playground"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
