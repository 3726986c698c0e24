"""Classes by name: one module a class in a package of ours, others by an entry-point group.

A module's name, dashes for underscores, is the class's name; the class says it again in its
attribute ``name``. Any other class is named by where it is imported from, ``package.module.Class``.
Settings follow the name in text: ``name:setting=value:setting=value``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from crossroads.core.errors import UsageError, unknown_name
from crossroads.core.kinds import parse_kind

_Base = TypeVar("_Base")


class Registry(Generic[_Base]):
    """The classes of one kind.

    Parameters
    ----------
    package : ``__name__`` of the package whose modules are searched
    group : entry points by which other packages add classes
    base : what all of them derive from
    what : what one is called in errors
    """

    def __init__(self, package: str, *, group: str, base: Any, what: str) -> None:
        self._package, self._group = package, group
        self._base, self._what = base, what
        self._others: dict[str, EntryPoint] | None = None
        self._found: dict[str, type[_Base]] = {}

    def names(self) -> list[str]:
        """Return all names, shipped and added by other packages, without importing any."""
        path = sys.modules[self._package].__path__  # as it is now: it may be extended
        shipped = (m.name.replace("_", "-") for m in pkgutil.iter_modules(path))
        return sorted({*shipped, *self._third_party()})

    def find(self, name: str) -> type[_Base]:
        """Return a class by name. Raises UsageError with the nearest spelling."""
        if name not in self._found:
            self._found[name] = self._load(name)
        return self._found[name]

    def forget(self) -> None:
        """Look everything up anew: after a package was installed."""
        self._others = None
        self._found.clear()

    def _third_party(self) -> dict[str, EntryPoint]:
        if self._others is None:
            self._others = {entry.name: entry for entry in entry_points(group=self._group)}
        return self._others

    def _import(self, path: str) -> type[_Base]:
        module, _, cls = path.rpartition(".")
        try:
            found: Any = getattr(importlib.import_module(module), cls)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"{self._what} {path!r}: cannot be imported: {error}") from error
        if not (inspect.isclass(found) and issubclass(found, self._base)):
            raise UsageError(f"{self._what} {path!r}: not a subclass of {self._base.__name__}")
        return cast("type[_Base]", found)

    def _load(self, name: str) -> type[_Base]:
        if "." in name:
            return self._import(name)
        if name not in self.names():
            raise unknown_name(self._what, name, self.names())
        if name in self._third_party():
            loaded: type[_Base] = self._third_party()[name].load()
            return loaded
        module = importlib.import_module(f"{self._package}.{name.replace('-', '_')}")
        for member in vars(module).values():
            is_ours = inspect.isclass(member) and issubclass(member, self._base)
            if is_ours and member.__module__ == module.__name__ and member.name == name:
                found: type[_Base] = member
                return found
        raise AssertionError(f"{module.__name__} defines no {self._what} named {name!r}")


def parse_settings(
    spec: str, known: Mapping[str, Any], *, what: str, kinds: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the settings that follow a name, each of the type of its default in ``known``.

    >>> parse_settings("knn:k=20", {"k": 5}, what="router")
    {'k': 20}

    ``kinds`` are annotations (``setting_kinds``), which tell more than a default: of None, that
    takes a number where the text reads as one. Raises UsageError for an unknown setting, one that
    is set twice, or a value of another type.
    """
    name, *assignments = spec.split(":")
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"{what} {spec!r}: expected setting=value, got {assignment!r}")
        if key not in known:
            raise unknown_name(f"setting of {what} {name!r}:", key, known)
        if key in settings:
            raise UsageError(f"{what} {spec!r}: {key} is set twice; leave one out")
        where = f"{what} {spec!r}: {key}"
        if kinds is not None and key in kinds:
            settings[key] = parse_kind(where, text, kinds[key])
        else:
            settings[key] = _parse(text, like=known[key], where=where)
    return settings


def _parse(text: str, *, like: Any, where: str) -> Any:
    if isinstance(like, bool):
        return parse_kind(where, text, bool)
    if isinstance(like, int | float):
        number = _number(text, whole=isinstance(like, int))
        if number is None:
            kind = "a whole number" if isinstance(like, int) else "a number"
            raise UsageError(f"{where}: expected {kind}, got {text!r}")
        return type(like)(number)
    if isinstance(like, tuple):
        return tuple(part for part in text.split("+") if part)
    if like is None:
        plain = {"none": None, "true": True, "false": False}
        number = _number(text, whole=True)
        number = _number(text) if number is None else number
        return plain.get(text.lower(), text) if number is None else number
    return text


def _number(text: str, *, whole: bool = False) -> float | None:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        return None
