"""Which routers of this room implement which rows of the survey's inventory.

A router says so itself, in its class attribute ``survey_row``, and then has the row's cells.
Routers that follow a row but for some axes stand in ``DEPARTURES``. Shipped routers are read
without being imported, so that the survey can be looked at where torch is not installed; routers
of other packages are imported.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.metadata import entry_points

from crossroads.core.errors import CrossroadsError

GROUP = "crossroads.adapters.routers"  # as in crossroads.adapters.routers, which imports torch

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Departure:
    """A router that follows a row of the inventory on all axes but some.

    Attributes
    ----------
    row : the row
    axes : why the router has another value there, one phrase, by axis
    """

    row: str
    axes: Mapping[str, str]


DEPARTURES: Mapping[str, Departure] = {
    "arrow": Departure(
        row="Arrow",
        axes={
            "expert_aggregation": "mixes outputs, as PEFT does; merging anew at every token is "
            "the same function for deltas and another one for factors",
        },
    ),
    "retrieval": Departure(
        row="Retrieval of Experts",
        axes={
            "input_granularity": "decides for each example: a stream of prompts has no task that "
            "examples could vote for",
        },
    ),
}
"""By the router's name."""


def implementations() -> dict[str, tuple[str, ...]]:
    """Return the names of the routers that implement a row, departures included, by its name."""
    shipped = _shipped()
    departing = [(router, DEPARTURES[router].row) for router, _ in shipped if router in DEPARTURES]
    stated = [(router, row) for router, row in [*shipped, *_third_party()] if row is not None]
    found: dict[str, list[str]] = {}
    for router, row in sorted({*stated, *departing}):
        found.setdefault(row, []).append(router)
    return {row: tuple(routers) for row, routers in found.items()}


@cache
def _shipped() -> tuple[tuple[str, str | None], ...]:
    """Return every shipped router with the row it states, or None."""
    folder = resources.files("crossroads.adapters").joinpath("routers")
    sources = {
        file.name.removesuffix(".py").replace("_", "-"): file.read_text("utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".py") and file.name != "__init__.py"
    }
    return tuple((router, _declared_row(source, router)) for router, source in sources.items())


def _declared_row(source: str, router: str) -> str | None:
    """Return the ``survey_row`` that the class of this name states as a plain text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            texts = dict(_texts(node))
            if texts.get("name") == router and "survey_row" in texts:
                return texts["survey_row"]
    return None


def _texts(cls: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield the class attributes that are plain texts, annotated or not."""
    for node in cls.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        value = node.value.value if isinstance(node.value, ast.Constant) else None
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(value, str):
                yield target.id, value


def _third_party() -> Iterator[tuple[str, str | None]]:
    for entry in entry_points(group=GROUP):
        try:
            row = entry.load().survey_row
        except (ImportError, AttributeError, CrossroadsError) as error:
            _log.warning("router %r cannot be looked at: %s", entry.name, error)
            continue
        yield entry.name, row
