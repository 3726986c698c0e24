"""One router of adapters a module; the module's name, dashes for underscores, is the router's name.

Other packages add routers through the entry-point group ``crossroads.adapters.routers``. A router
is a subclass of ``crossroads.adapters.contract.Router`` with a class attribute ``name`` and keyword
settings with defaults. One that is not installed goes by ``package.module.Class``.
"""

from __future__ import annotations

import inspect
from typing import Any

from crossroads.adapters.contract import Router
from crossroads.core.registry import Registry, parse_settings

GROUP = "crossroads.adapters.routers"
REGISTRY: Registry[Router] = Registry(__name__, group=GROUP, base=Router, what="adapter router")


def router_names() -> list[str]:
    """Return the names of all routers, shipped and added by other packages, without importing."""
    return REGISTRY.names()


def router_class(name: str) -> type[Router]:
    """Return the class of a router by name. Raises UsageError with the nearest spelling."""
    return REGISTRY.find(name)


def known_settings(cls: type[Router]) -> dict[str, Any]:
    """Return the settings of a router class with their defaults."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def build_router(spec: str, **settings: Any) -> Router:
    """Return a router of ``name`` or ``name:setting=value``; ``settings`` go before the text's.

    Raises UsageError for an unknown name or setting, or a value of another type.
    """
    cls = router_class(spec.split(":", maxsplit=1)[0])
    told = parse_settings(spec, known_settings(cls), what="adapter router")
    return cls(**{**settings, **told})
