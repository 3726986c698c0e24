"""One router a module; the module's name, dashes for underscores, is the router's name.

Other packages add routers through the entry-point group ``crossroads.moe.routers``. A router is a
subclass of ``crossroads.moe.contract.Router`` with a class attribute ``name`` and the constructor
``Router(d, n_experts, *, setting=default, ...)``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from crossroads.core.errors import UsageError, unknown_name
from crossroads.moe.contract import Router

GROUP = "crossroads.moe.routers"


@cache
def _third_party() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def router_names() -> list[str]:
    """Return the names of all routers, shipped and added by other packages, without importing."""
    shipped = (m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__))
    return sorted({*shipped, *_third_party()})


@cache
def router_class(name: str) -> type[Router]:
    """Return the class of a router by name. Raises UsageError with the nearest spelling."""
    name = name.replace("_", "-")
    if name not in router_names():
        raise unknown_name("router", name, router_names())
    if name in _third_party():
        loaded: type[Router] = _third_party()[name].load()
        return loaded
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    for member in vars(module).values():
        if inspect.isclass(member) and vars(member).get("name") == name:
            return cast("type[Router]", member)
    raise AssertionError(f"{module.__name__} defines no router named {name!r}")


def parse_router(spec: str) -> tuple[str, dict[str, Any]]:
    """Return name and settings of ``name`` or ``name:setting=value:setting=value``.

    >>> parse_router("top-p:p=0.3")
    ('top-p', {'p': 0.3})

    Raises UsageError for an unknown name or setting, or a value of another type.
    """
    name, *assignments = spec.split(":")
    cls = router_class(name)
    known = known_settings(cls)
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"router {spec!r}: expected setting=value, got {assignment!r}")
        if key not in known:
            raise unknown_name(f"setting of router {name!r}:", key, known)
        settings[key] = _parse(text, like=known[key], where=f"router {spec!r}: {key}")
    return name.replace("_", "-"), settings


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
    """Build a router for tokens of width ``d``; settings in the text win over the arguments."""
    name, given = parse_router(spec)
    cls: Any = router_class(name)
    router: Router = cls(d, n_experts, **{**settings, **given})
    return router


def _parse(text: str, *, like: Any, where: str) -> Any:
    """Convert text to the type of a setting's default; None takes a number if it reads as one."""
    if isinstance(like, bool):
        if text.lower() in {"true", "yes", "1"}:
            return True
        if text.lower() in {"false", "no", "0"}:
            return False
        raise UsageError(f"{where}: expected true or false, got {text!r}")
    if isinstance(like, str):
        return text
    for kind in (int,) if isinstance(like, int) else (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if like is None:
        return {"none": None, "true": True, "false": False}.get(text.lower(), text)
    expected = "a whole number" if isinstance(like, int) else "a number"
    raise UsageError(f"{where}: expected {expected}, got {text!r}")
