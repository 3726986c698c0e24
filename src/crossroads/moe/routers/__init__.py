"""One router a module; the module's name, dashes for underscores, is the router's name.

Other packages add routers through the entry-point group ``crossroads.moe.routers``. A router is a
subclass of ``crossroads.moe.contract.Router`` with a class attribute ``name`` and the constructor
``Router(d, n_experts, *, setting=default, ...)``. One that is not installed goes by
``package.module.Class``.
"""

from __future__ import annotations

import inspect
from typing import Any

from crossroads.core.errors import UsageError
from crossroads.core.kinds import check_kind, setting_kinds
from crossroads.core.registry import Registry, parse_settings
from crossroads.moe.contract import Router

BUILT_IN = frozenset({"kinds"})  # settings that what builds a model fills in, and no text
GROUP = "crossroads.moe.routers"
REGISTRY: Registry[Router] = Registry(__name__, group=GROUP, base=Router, what="router")


def router_names() -> list[str]:
    """Return the names of all routers, shipped and added by other packages, without importing."""
    return REGISTRY.names()


def router_class(name: str) -> type[Router]:
    """Return the class of a router by name. Raises UsageError with the nearest spelling."""
    return REGISTRY.find(_with_dashes(_text(name)))


def parse_router(spec: str) -> tuple[str, dict[str, Any]]:
    """Return name and settings of ``name`` or ``name:setting=value:setting=value``.

    >>> parse_router("top-p:p=0.3")
    ('top-p', {'p': 0.3})

    Raises UsageError for an unknown name or setting, or a value of another type.
    """
    name = _with_dashes(_text(spec).split(":", maxsplit=1)[0])
    if name == "dense":
        raise UsageError(
            "router 'dense' stands for no router at all: MoESpec, run files of crossroads train "
            "and crossroads arena moe take it; there is nothing to build"
        )
    cls = router_class(name)
    known = {n: default for n, default in known_settings(cls).items() if n not in BUILT_IN}
    return name, parse_settings(spec, known, what="router", kinds=setting_kinds(cls))


def known_settings(cls: type[Router]) -> dict[str, Any]:
    """Return the settings of a router class with their defaults.

    A class whose constructor ends in ``**settings`` hands them to its base, whose settings count.
    """
    known: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        for p in parameters:
            if p.kind is p.KEYWORD_ONLY and p.default is not p.empty:
                known.setdefault(p.name, p.default)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return known


def build_router(spec: str, d: int, n_experts: int, **settings: Any) -> Router:
    """Build a router for tokens of width ``d``; settings in the text win over the arguments.

    Raises UsageError for sizes that are no positive whole numbers, and settings that do not fit,
    by value or by kind.
    """
    for size, label in ((d, "d"), (n_experts, "n_experts")):
        if not isinstance(size, int) or size < 1:
            raise UsageError(f"{label}: expected a whole number of at least 1, got {size!r}")
    name, given = parse_router(spec)
    cls: Any = router_class(name)
    kinds = setting_kinds(cls)
    for setting, value in settings.items():
        if setting in kinds:
            check_kind(f"router {name!r}: {setting}", value, kinds[setting])
    try:
        router: Router = cls(d, n_experts, **{**settings, **given})
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise UsageError(f"router {name!r}: {error}") from error
    return router


def _text(name: str) -> str:
    if not isinstance(name, str):
        raise UsageError(f"router: expected its name as text, got {name!r}")
    return name


def _with_dashes(name: str) -> str:
    """Return a name as it is listed; one that says where to import from stays as it is."""
    return name if "." in name else name.replace("_", "-")
