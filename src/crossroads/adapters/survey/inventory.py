"""The survey's inventory of methods as data: 26 rows by its authors, the others added here.

``inventory.csv`` beside this file holds a row a method: its cells on the nine axes, and what we add
to them: kind, source, paper, what its experts are, and one phrase. The cells of the authors' rows
are those of their public list; the cells of rows whose source is ``ours`` are our own reading.

Departure from the survey: methods that train experts and router together are no MoErging and the
survey leaves them out. They are listed as kind ``joint`` with cells of our own, so that a report
can say what they were told; all their data counts as shared with whoever trains the router.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

from crossroads.adapters.survey.schema import AXES, Cells
from crossroads.core.errors import InputError, unknown_name

Kind = Literal["moerging", "joint", "system"]
Source = Literal["authors", "ours"]
Experts = Literal["adapters", "models", "either"]

KINDS: Mapping[str, str] = {
    "moerging": "routes among experts that were trained before",
    "joint": "trains its experts and its router together",
    "system": "software rather than a published method",
}
_FACTS = {"kind": get_args(Kind), "source": get_args(Source), "experts": get_args(Experts)}
_ARXIV = re.compile(r"\d{4}\.\d{5}")
COLUMNS = ("method", "kind", "source", "arxiv", "experts", *AXES, "about")


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One row of the inventory.

    Attributes
    ----------
    name : the method, spelt as in the survey where the survey has it
    kind : a key of ``KINDS``
    source : who chose the cells, the survey's ``authors`` or ``ours``
    arxiv : identifier of the paper without version; empty where there is none
    experts : what it routes to, ``adapters``, whole ``models``, or ``either``
    cells : its place on the nine axes
    about : what it does, one phrase
    """

    name: str
    kind: Kind
    source: Source
    arxiv: str
    experts: Experts
    cells: Cells
    about: str

    @property
    def url(self) -> str:
        """The paper's page; empty where there is none."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, the cells one level down."""
        return {
            "method": self.name,
            "kind": self.kind,
            "source": self.source,
            "arxiv": self.arxiv,
            "experts": self.experts,
            "cells": self.cells.to_dict(),
            "about": self.about,
        }


@cache
def inventory() -> tuple[Method, ...]:
    """Return all rows in the file's order: the authors' by name, then ours by kind."""
    text = resources.files(__package__).joinpath("inventory.csv").read_text("utf-8")
    return parse_inventory(text, where="inventory.csv")


def row(name: str) -> Method:
    """Return one row. Raises UsageError with the nearest spelling."""
    by_name = {method.name: method for method in inventory()}
    if name not in by_name:
        raise unknown_name("method of the survey", name, by_name)
    return by_name[name]


def parse_inventory(text: str, *, where: str) -> tuple[Method, ...]:
    """Return the rows of a CSV text with the columns ``COLUMNS``.

    ``where`` is what errors call the text. Raises InputError naming line, column and what was
    expected, for a wrong header, a value outside its axis, an empty or repeated name.
    """
    lines = csv.DictReader(text.splitlines(), strict=True)
    if tuple(lines.fieldnames or ()) != COLUMNS:
        raise InputError(
            f"{where}, line 1: expected the columns {', '.join(COLUMNS)}; "
            f"got {', '.join(lines.fieldnames or ()) or 'none'}"
        )
    methods: dict[str, Method] = {}
    for fields in lines:
        place = f"{where}, line {lines.line_num}"
        method = _method(fields, place)
        if method.name in methods:
            raise InputError(f"{place}: method {method.name!r} is there twice; keep one row of it")
        methods[method.name] = method
    return tuple(methods.values())


def _method(fields: Mapping[str, Any], place: str) -> Method:
    if None in fields or None in fields.values():
        raise InputError(f"{place}: expected {len(COLUMNS)} columns; quote texts that hold commas")
    for column, values in _FACTS.items():
        if fields[column] not in values:
            raise InputError(
                f"{place}: {column}: expected one of {', '.join(values)}, got {fields[column]!r}"
            )
    for column in ("method", "about"):
        if not fields[column].strip():
            raise InputError(f"{place}: {column} is empty; write it")
    if fields["arxiv"] and not _ARXIV.fullmatch(fields["arxiv"]):
        raise InputError(
            f"{place}: arxiv: expected an identifier such as 2408.07057 or nothing, "
            f"got {fields['arxiv']!r}"
        )
    try:
        cells = Cells(**{axis: fields[axis] for axis in AXES})
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    facts = {key: fields[key] for key in ("kind", "source", "arxiv", "experts", "about")}
    return Method(name=fields["method"], cells=cells, **facts)
