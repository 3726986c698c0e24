"""``crossroads adapters survey``."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from crossroads.adapters.survey.inventory import inventory
from crossroads.adapters.survey.moerging import methods
from crossroads.adapters.survey.schema import AXES
from crossroads.cli import cli
from crossroads.cli.adapters.survey import command
from crossroads.core.errors import UsageError

ROW = {"method", "kind", "source", "arxiv", "experts", "cells", "about", "routers", "departures"}


def run(*arguments: str, **options: Any) -> Result:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False, **options)
    assert result.exit_code == 0
    return result


def listed(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["method"] for row in rows]


def test_json_has_every_row_with_the_documented_keys() -> None:
    rows = listed()
    assert names(rows) == [method.name for method in inventory()]
    for row in rows:
        assert row.keys() == ROW
        assert list(row["cells"]) == list(AXES)


def test_the_table_in_a_pipe_has_one_line_for_each_row() -> None:
    lines = run().stdout.splitlines()
    assert lines[0].split() == [
        "method", "experts", "routed", "by", "per", "combines", "meant", "for", "router"
    ]  # fmt: skip
    assert len(lines) == 1 + len(inventory())
    for method, line in zip(inventory(), lines[1:], strict=True):
        assert line.startswith(method.name)
        assert all(value in line for value in method.cells.to_dict().values())
        assert ("(ours" in line) == (method.source == "ours")
        assert (f"{method.kind})" in line) == (method.kind != "moerging")


@pytest.mark.parametrize("axis", AXES.values(), ids=list(AXES))
def test_every_axis_is_a_filter(axis: Any) -> None:
    for value in axis.values:
        found = listed(f"--{axis.option}", value.lower())
        assert names(found) == [m.name for m in methods(**{axis.name: value})]


def test_filters_narrow_together_and_take_several_values() -> None:
    found = listed("--expert-data", "Private", "--routing-dataset", "none,general")
    expected = methods(expert_data="Private", routing_dataset=("None", "General"))
    assert names(found) == [m.name for m in expected]
    assert names(listed("--kind", "joint,system")) == [
        m.name for m in inventory() if m.kind != "moerging"
    ]
    assert len(listed("--source", "authors")) == 26


def test_implemented_methods_name_their_routers() -> None:
    rows = listed("--implemented")
    assert all(row["routers"] for row in rows)
    by_name = {row["method"]: row for row in rows}
    assert by_name["PHATGOOSE"]["routers"] == ["phatgoose"]
    assert by_name["Arrow"]["departures"].keys() == {"arrow"}
    result = run("--implemented")
    assert "phatgoose" in result.stdout
    assert "arrow*" in result.stdout
    assert "* arrow departs from its row in expert_aggregation: mixes outputs" in result.stderr
    total = len(inventory())
    assert f"{len(rows)} of {total} methods, {len(rows)} implemented here" in result.stderr


def test_on_a_narrow_terminal_cells_stand_below_one_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    lines = [click.unstyle(line) for line in run("--routing-dataset", "None").stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    (place,) = [place for place, line in enumerate(lines) if line.startswith("PHATGOOSE")]
    assert "Out-of-Distribution," in lines[place]
    assert lines[place + 1].split() == ["router:", "Private", "Module", "Output", "Zero-Shot"]


def test_a_situation_names_what_fits_and_what_nearly_does() -> None:
    case = "private-data,target-examples=0,custom-training=no,per=token,tasks=new,experts=adapters"
    found = listed("--situation", case)
    assert found.keys() == {"situation", "fits", "near_misses"}
    assert names(found["fits"]) == ["Arrow"]
    for row in (*found["fits"], *found["near_misses"]):
        assert row.keys() == ROW | {"because", "unmet"}
        assert len(row["unmet"]) == (row not in found["fits"])
    text = run("--situation", case).stdout
    assert "Fit: 1 method\n" in text
    assert f"Miss by one fact: {len(found['near_misses'])} methods\n" in text
    assert "contributors must add something" in text


def test_filters_narrow_what_is_recommended() -> None:
    found = listed("--situation", "private-data", "--expert-aggregation", "Parameter")
    rows = [*found["fits"], *found["near_misses"]]
    assert {row["cells"]["expert_aggregation"] for row in rows} == {"Parameter"}
    nothing = run("--situation", "per=token", "--input-granularity", "N/A", "--kind", "joint")
    assert nothing.stdout == "Fit: 0 methods\n\nMiss by one fact: 0 methods\n"


def test_the_axes_are_explained() -> None:
    rows = listed("--axes")
    assert [row["axis"] for row in rows] == list(AXES)
    assert rows[0]["values"] == dict(AXES["expert_training"].values)
    text = run("--axes").stdout
    for axis in AXES.values():
        assert f"--{axis.option} ({axis.design}): {axis.question}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--expert-data", "privat"], "value of expert_data 'privat'; did you mean 'Private'"),
        (["--expert-data", ","], "--expert-data: expected names separated by commas, got ','"),
        (["--kind", "joined"], "value of kind 'joined'; did you mean 'joint'"),
        (["--situation", "privte-data"], "'privte-data'; did you mean 'private-data'"),
        (["--situation", ""], "situation: expected facts separated by commas"),
        (["--axes", "--implemented"], "--axes explains the axes and takes no filter"),
    ],
)
def test_wrong_usage_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CliRunner().invoke(command, arguments, catch_exceptions=False)


def test_the_group_knows_its_commands_and_imports_none_for_help() -> None:
    code = (
        "import sys; from crossroads.cli import main\n"
        "try: main(['adapters', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'crossroads.adapters'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "survey" in ran.stdout
    result = CliRunner().invoke(cli, ["adapters", "survey", "--help"], catch_exceptions=False)
    assert "--routing-dataset" in result.stdout
