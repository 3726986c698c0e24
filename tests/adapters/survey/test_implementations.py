"""Routers and their rows: what the files say is what the classes say, and what running shows."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest

from crossroads.adapters import routers as registry
from crossroads.adapters.contract import Router
from crossroads.adapters.routers import router_class, router_names
from crossroads.adapters.survey import implementations as module
from crossroads.adapters.survey.implementations import DEPARTURES, GROUP, implementations
from crossroads.adapters.survey.inventory import row
from crossroads.adapters.survey.schema import AXES, combining_modes

NAMES = router_names()
if not NAMES:
    pytest.skip("no routers of adapters yet", allow_module_level=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_router_has_the_cells_of_the_row_it_states(name: str) -> None:
    cls = router_class(name)
    if cls.survey_row is None:
        return
    assert cls.cells is not None, f"{name} states a row of the survey and no cells"
    assert not cls.cells.differences(row(cls.survey_row).cells)


@pytest.mark.parametrize("name", NAMES)
def test_a_router_combines_in_a_mode_that_its_cells_allow(name: str) -> None:
    cls = router_class(name)
    if cls.cells is not None:
        assert cls.mode in combining_modes(cls.cells)


@pytest.mark.parametrize("name", DEPARTURES)
def test_a_departure_is_where_the_cells_differ_from_the_row(name: str) -> None:
    cells, departure = router_class(name).cells, DEPARTURES[name]
    assert cells is not None
    assert set(cells.differences(row(departure.row).cells)) == set(departure.axes)
    assert departure.axes.keys() <= AXES.keys()


def test_reading_the_files_finds_what_importing_them_would() -> None:
    stated = {name: router_class(name).survey_row for name in NAMES}
    departing = {name: departure.row for name, departure in DEPARTURES.items()}
    expected = {n: r for n, r in {**stated, **departing}.items() if r is not None}
    found = {name: of for of, names in implementations().items() for name in names}
    assert found == expected


def test_every_row_that_is_implemented_is_in_the_inventory() -> None:
    for name in implementations():
        assert row(name).name == name


def test_the_group_is_the_registrys() -> None:
    assert GROUP == registry.GROUP


class Stranger(Router):
    name: ClassVar[str] = "stranger"
    survey_row: ClassVar[str | None] = "LoraHub"


class Silent(Router):
    name: ClassVar[str] = "silent"


def test_routers_of_other_packages_count_and_broken_ones_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [
        EntryPoint(name="stranger", group=GROUP, value=f"{__name__}:Stranger"),
        EntryPoint(name="silent", group=GROUP, value=f"{__name__}:Silent"),
        EntryPoint(name="gone", group=GROUP, value="no_such_package:Router"),
    ]
    monkeypatch.setattr(module, "entry_points", lambda group: entries if group == GROUP else [])
    with caplog.at_level(logging.WARNING):
        found = implementations()
    assert "stranger" in found["LoraHub"]
    assert "silent" not in {name for names in found.values() for name in names}
    assert "router 'gone' cannot be looked at" in caplog.text


@pytest.mark.parametrize(
    ("source", "stated"),
    [
        ('class A:\n    name = "a-b"\n    survey_row = "Arrow"\n', "Arrow"),
        ('class A:\n    name: str = "a-b"\n    survey_row: str = "Arrow"\n', "Arrow"),
        ('class A:\n    name = "other"\n    survey_row = "Arrow"\n', None),
        ('class A:\n    name = "a-b"\n    survey_row = None\n', None),
        ('class A:\n    name = "a-b"\n', None),
    ],
)
def test_a_row_is_read_from_the_class_of_the_routers_name(source: str, stated: str | None) -> None:
    assert module._declared_row(source, "a-b") == stated
