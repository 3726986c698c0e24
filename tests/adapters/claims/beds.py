"""Beds for tests of claims: one with figures by hand, one with the shipped experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import pytest

from crossroads.adapters.claims.collection_bed import CollectionBed
from crossroads.adapters.collection.tasks import tasks
from crossroads.core.errors import UnavailableError

Values = Sequence[float]


class HandBed(CollectionBed):
    """Means of arms as given: name -> (held in, held out), each a value a seed."""

    def __init__(self, figures: Mapping[str, tuple[Values, Values]]) -> None:
        self._figures = figures

    def by_task(  # type: ignore[override]
        self, arm: str, *, held_in: bool, **how: object
    ) -> Mapping[str, tuple[float, ...]]:
        return {"task": tuple(self._figures[arm][0 if held_in else 1])}


@cache
def _shipped() -> CollectionBed | str:
    try:
        bed = CollectionBed(rows=1)
        tasks()
    except UnavailableError as missing:
        return str(missing)
    return bed


def shipped_bed() -> CollectionBed:
    """The shipped experts with one row a task and seed; skips where something is missing."""
    found = _shipped()
    if isinstance(found, str):
        pytest.skip(found)
    return found
