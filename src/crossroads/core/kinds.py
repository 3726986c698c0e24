"""What values a setting takes, read from the annotation of a constructor's parameter.

A default tells the type of a value only where it is not None; the annotation tells it always.
"""

from __future__ import annotations

import inspect
import types
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from crossroads.core.errors import UsageError

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def setting_kinds(cls: type) -> dict[str, Any]:
    """Return the annotations of a class's settings, those of its bases where it hands them on.

    Settings of plain values alone (numbers, texts, truths, none): all others are left out, so are
    those without an annotation, or with one that cannot be read.
    """
    kinds: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        made = vars(base)["__init__"]
        try:
            hints = get_type_hints(made)
        except (NameError, TypeError, AttributeError):  # names a type checker alone imports
            hints = {}
        parameters = inspect.signature(made).parameters.values()
        for p in parameters:
            if p.kind is p.KEYWORD_ONLY and _is_plain(hints.get(p.name)):
                kinds.setdefault(p.name, hints[p.name])
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return kinds


def describe_kind(kind: Any) -> str:
    """Return an annotation in words.

    >>> describe_kind(int | None)
    'a whole number or none'
    """
    members = _members(kind)
    names = ["one of " + ", ".join(get_args(m)) for m in members if get_origin(m) is Literal]
    names += [name for plain, name in _NAMES.items() if plain in members]
    names += [
        f"a {m.__name__}" for m in members if isinstance(m, type) and m not in (*_NAMES, _NONE)
    ]
    names += ["none"] * (_NONE in members)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def check_kind(where: str, value: Any, kind: Any) -> None:
    """Raise UsageError for a value that its annotation does not allow."""
    if not any(_fits(value, member) for member in _members(kind)):
        raise UsageError(f"{where}: expected {describe_kind(kind)}, got {value!r}")


def parse_kind(where: str, text: str, kind: Any) -> Any:
    """Return the value that a text stands for. Raises UsageError where it is of another kind."""
    members = _members(kind)
    if _NONE in members and text.lower() == "none":
        return None
    for member in members:
        if member is bool and text.lower() in (*TRUE, *FALSE):
            return text.lower() in TRUE
        if member in (int, float):
            try:
                return member(text)
            except ValueError:
                continue
        if member is str or get_origin(member) is Literal:
            return text  # what the constructor knows of it, it says itself
    raise UsageError(f"{where}: expected {describe_kind(kind)}, got {text!r}")


_NONE = type(None)


def _is_plain(kind: Any) -> bool:
    """Return whether an annotation can be checked, and a text can stand for one of its values."""
    members = _members(kind)
    texts = [m for m in members if m in _NAMES or _is_choice(m)]
    classes = [m for m in members if isinstance(m, type) and not getattr(m, "_is_protocol", False)]
    return bool(texts) and set(members) == {*texts, *classes}


def _is_choice(member: Any) -> bool:
    return get_origin(member) is Literal and all(isinstance(v, str) for v in get_args(member))


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _fits(value: Any, member: Any) -> bool:
    if member is bool:
        return isinstance(value, bool | np.bool_)
    if member in (int, float):
        number = Integral if member is int else Real
        return isinstance(value, number) and not isinstance(value, bool)
    if get_origin(member) is Literal:
        return isinstance(value, str)  # which texts, the constructor says itself
    return isinstance(value, member)
