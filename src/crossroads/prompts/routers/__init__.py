"""One router a module; the module's name, dashes for underscores, is the router's name.

Other packages add routers through the entry-point group ``crossroads.routers``.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from crossroads.core.errors import UsageError, unknown_name
from crossroads.prompts.router import PromptRouter

GROUP = "crossroads.routers"


@cache
def _third_party() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def router_names() -> list[str]:
    """Return the names of all routers, shipped and added by other packages, without importing."""
    shipped = (m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__))
    return sorted({*shipped, *_third_party()})


@cache
def router_class(name: str) -> type[PromptRouter]:
    """Return the class of a router by name. Raises UsageError with the nearest spelling."""
    if name not in router_names():
        raise unknown_name("router", name, router_names())
    found: type[PromptRouter]
    if name in _third_party():
        found = _third_party()[name].load()
        return found
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    for member in vars(module).values():
        is_router = inspect.isclass(member) and issubclass(member, PromptRouter)
        if is_router and member.__module__ == module.__name__ and member.name == name:
            found = member
            return found
    raise AssertionError(f"{module.__name__} defines no PromptRouter named {name!r}")


def build_router(spec: str) -> PromptRouter:
    """Build an unfitted router from ``name`` or ``name:setting=value:setting=value``.

    >>> build_router("knn:k=20").settings["k"]
    20
    """
    name, *assignments = spec.split(":")
    cls = router_class(name)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"router {spec!r}: expected setting=value, got {assignment!r}")
        if key not in fields:
            raise unknown_name(f"setting of router {name!r}:", key, fields)
        settings[key] = _parse(text, like=fields[key].default, where=f"router {spec!r}: {key}")
    return cls(**settings)


def _parse(text: str, *, like: Any, where: str) -> Any:
    """Convert text to the type of a setting's default."""
    if isinstance(like, bool):
        if text.lower() in {"true", "yes", "1"}:
            return True
        if text.lower() in {"false", "no", "0"}:
            return False
        raise UsageError(f"{where}: expected true or false, got {text!r}")
    if isinstance(like, int | float):
        try:
            return type(like)(text)
        except ValueError:
            kind = "a whole number" if isinstance(like, int) else "a number"
            raise UsageError(f"{where}: expected {kind}, got {text!r}") from None
    if isinstance(like, tuple):
        return tuple(part for part in text.split("+") if part)
    return text
