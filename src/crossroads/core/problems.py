"""What is wrong with a file of fields, in plain words and at the place it is written.

A validator speaks of types and tags; whoever wrote the file speaks of fields. Values are told only
where they cannot be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from crossroads.core.errors import unknown_name

Place = Sequence[int | str]

_SHAPES = {
    **{"string_type": "a text", "int_type": "a whole number", "int_parsing": "a whole number"},
    **{"int_from_float": "a whole number", "float_type": "a number", "float_parsing": "a number"},
    **{"finite_number": "a finite number", "bool_type": "true or false"},
    **{"bool_parsing": "true or false", "list_type": "a list", "tuple_type": "a list"},
    **{"dict_type": "fields and values", "model_type": "fields and values"},
    **{"model_attributes_type": "fields and values"},
}
_BOUNDS = {
    **{"greater_than": ("gt", "more than"), "greater_than_equal": ("ge", "at least")},
    **{"less_than": ("lt", "less than"), "less_than_equal": ("le", "at most")},
}
_LENGTHS = {
    **{"too_short": ("min_length", "at least", "entries")},
    **{"too_long": ("max_length", "at most", "entries")},
    **{"string_too_short": ("min_length", "at least", "characters")},
    **{"string_too_long": ("max_length", "at most", "characters")},
}
_NAMES: dict[type, str] = {
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "fields and values",
    NoneType: "nothing",
}
_KEY = "[key]"  # how a validator says that the name of an entry is meant, not its value
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_TOKEN = re.compile(r"(['\"])(<[a-z ]+>|[!-/:-@\[-`{-~]{1,3}|\\t)\1")
"""What YAML itself is written with, in quotes: ',', '---', '<stream end>'. No name, no value."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and the field it is wrong with ("" for the whole)."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


def problems_of(
    error: ValidationError, shape: Any, *, may_tell: Callable[[Place], bool] = lambda place: False
) -> list[Problem]:
    """Return everything a validator found, unknown fields first.

    They go first since a missing field is often the same one spelt wrongly.

    Parameters
    ----------
    error : of the validator
    shape : what the value should have been: a model's class, or a type such as ``dict[str, int]``
    may_tell : whether the value at a place may be told; none is unless this is given
    """
    found = [each for each in error.errors(include_url=False) if not _is_echo(each)]
    found.sort(key=lambda each: each["type"] != "extra_forbidden")
    return [_problem(each, shape, may_tell) for each in found]


def on_one_line(problems: Sequence[Problem], *, remedy: str = "") -> str:
    """Return the first problem, and how many there are besides; ``remedy`` says where they are."""
    more = f" (and {len(problems) - 1} more{remedy})" if len(problems) > 1 else ""
    return f"{problems[0]}{more}"


def yaml_problem(error: Exception) -> str:
    """Return what is wrong with a YAML text, and where, without a word of the text."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if not isinstance(error, yaml.YAMLError):  # RecursionError, ValueError of a date
        return "nested too deeply" if isinstance(error, RecursionError) else "not a possible value"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "not readable"
    problem = _without_text(str(problem))
    if mark is None:
        return problem
    begin, context = getattr(error, "context_mark", None), getattr(error, "context", None)
    found = f"{problem} in {_spot(mark)}"
    if begin is None or not context or (begin.line, begin.column) == (mark.line, mark.column):
        return found
    return f"{found}, {_without_text(str(context))} from {_spot(begin)}"


def _spot(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _without_text(words: str) -> str:
    """Return words of the YAML reader on one line, what they quote of the text blotted out."""

    def shown(found: re.Match[str]) -> str:
        return found[0] if _TOKEN.fullmatch(found[0]) else "'...'"

    return _QUOTED.sub(shown, " ".join(words.split()))


def _is_echo(found: ErrorDetails) -> bool:
    """Tell whether a list is called too short only since entries of it are wrong."""
    return found["type"] == "too_short" and len(found["input"]) >= found["ctx"]["min_length"]


def _problem(found: ErrorDetails, shape: Any, may_tell: Callable[[Place], bool]) -> Problem:
    if found["type"] == "extra_forbidden":
        *sections, name = found["loc"]
        place, section = _walk(sections, shape)
        if isinstance(section, type) and issubclass(section, BaseModel):
            return Problem(place, str(unknown_name("field", str(name), _fields(section))))
        return Problem(place, f"unknown field {name!r}; remove it")
    if found["type"] == "union_tag_not_found":
        place, members = _find(found["loc"], shape)
        tag = found["ctx"]["discriminator"].strip("'")
        kinds = ", ".join(filter(None, map(_tag, members)))
        return Problem(place, f"{tag!r} is missing; add one of: {kinds}")
    place, _ = _walk(found["loc"], shape)
    return Problem(place, _words(found, _got(found, may_tell)))


def _fields(section: type[BaseModel]) -> list[str]:
    """Return the fields of a section as one writes them."""
    return [field.alias or name for name, field in section.model_fields.items()]


def _words(found: ErrorDetails, got: str) -> str:
    """Return what is wrong, what was expected, and what came where that may be told."""
    kind, context = found["type"], found.get("ctx", {})
    if kind == "missing":
        return "is missing; add it"
    if kind == "union_tag_invalid":
        known = [name.strip(" '") for name in context["expected_tags"].split(",")]
        return str(unknown_name(context["discriminator"].strip("'"), context["tag"], known))
    if kind in _LENGTHS:
        name, words, what = _LENGTHS[kind]
        if not found["input"]:
            return "is empty; fill it in"
        return f"expected {words} {context[name]} {what}, got {len(found['input'])}"
    if kind in _SHAPES:
        came = _NAMES.get(type(found["input"]), "another kind of value")
        return f"expected {_SHAPES[kind]}{got or f', got {came}'}"
    problem = _sentence(found)
    return problem if ", got " in problem else f"{problem}{got}"


def _sentence(found: ErrorDetails) -> str:
    """Return what was expected of a value of the right kind."""
    kind, context = found["type"], found.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"expected {words} {context[name]:g}"
    if kind == "string_pattern_mismatch":
        return f"expected a text that matches {context['pattern']}"
    if kind == "literal_error":
        return f"expected {context['expected']}"
    problem = " ".join(found["msg"].split())
    return problem.replace("Input should be ", "expected ")


def _got(found: ErrorDetails, may_tell: Callable[[Place], bool]) -> str:
    """Return the value given, "" where it can be, or hold, a secret."""
    given = found["input"]
    if isinstance(given, str | int | float | None) and may_tell(found["loc"]):
        return f", got {given!r:.80}"
    return ""


def _walk(path: Place, shape: Any) -> tuple[str, Any]:
    """Return a path as one writes it, and the type of what is there; None where it is a union."""
    place, members = _find(path, shape)
    return place, members[0] if len(members) == 1 else None


def _find(path: Place, shape: Any) -> tuple[str, list[Any]]:
    """Return a path as one writes it, ``keys[0].secret``, and the types of what may be there.

    A validator also names the member of a union it chose, which nobody wrote: those are left out.
    """
    place = ""
    kind: Any = shape
    for part in path:
        if part == _KEY:
            continue
        members = _members(kind)
        if len(members) > 1:
            kind = next((each for each in members if _tag(each) == part), None)
            continue
        kind = _inside(members[0] if members else None, part)
        place += f"[{part}]" if isinstance(part, int) else f"{'.' if place else ''}{_shown(part)}"
    return place, _members(kind)


def _shown(name: str) -> str:
    """Return a name of a file on one line."""
    return name if name.isprintable() else repr(name)[1:-1]


def _members(kind: Any) -> list[Any]:
    """Return what a type may be, other than None."""
    if hasattr(kind, "__metadata__"):  # Annotated
        kind = get_args(kind)[0]
    if kind is None or kind is NoneType:
        return []
    if isinstance(kind, type) or get_origin(kind) in (dict, list, tuple):
        return [kind]
    return [each for each in get_args(kind) if each is not NoneType]


def _tag(member: Any) -> str | None:
    """Return how a validator names a member of a union."""
    if isinstance(member, type) and issubclass(member, BaseModel):
        kind = member.model_fields.get("kind")
        return member.__name__ if kind is None else str(kind.default)
    return None


def _inside(kind: Any, part: int | str) -> Any:
    """Return the type of a field, a value or an entry."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(str(part))
        return None if field is None else field.annotation
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return arguments[1]
    return arguments[0] if arguments else None
