"""One router a module; the module's name, dashes for underscores, is the router's name.

Other packages add routers through the entry-point group ``crossroads.routers``.
"""

from __future__ import annotations

import dataclasses

from crossroads.core.registry import Registry, parse_settings
from crossroads.prompts.router import PromptRouter

GROUP = "crossroads.routers"
REGISTRY: Registry[PromptRouter] = Registry(__name__, group=GROUP, base=PromptRouter, what="router")


def router_names() -> list[str]:
    """Return the names of all routers, shipped and added by other packages, without importing."""
    return REGISTRY.names()


def router_class(name: str) -> type[PromptRouter]:
    """Return the class of a router by name. Raises UsageError with the nearest spelling."""
    return REGISTRY.find(name)


def build_router(spec: str) -> PromptRouter:
    """Build an unfitted router from ``name`` or ``name:setting=value:setting=value``.

    >>> build_router("knn:k=20").settings["k"]
    20
    """
    cls = router_class(spec.split(":", maxsplit=1)[0])
    known = {f.name: f.default for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    return cls(**parse_settings(spec, known, what="router"))
