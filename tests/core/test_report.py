"""The report: what the table and the page say about rows of every kind."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console
from rich.table import Table

from crossroads.core.arena import Leaderboard, Metric, Row, leaderboard_schema, run_arena
from crossroads.core.errors import InputError
from crossroads.core.report import (
    format_figure,
    leaderboard_table,
    render_report,
    role_of,
    table_names,
    write_report,
)
from crossroads.core.report.fitted import NAME_WIDTH, FittedTable
from tests.core.toy_task import ToyTask


@pytest.fixture(scope="module")
def board() -> Leaderboard:
    return run_arena(ToyTask(), ["better", "steady", "bound", "refused"], seeds=3, jobs=1)


@pytest.fixture(scope="module")
def page(board: Leaderboard) -> str:
    return render_report(board, ToyTask().plots(board))


def text_of(board: Leaderboard, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(leaderboard_table(board))
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(output, str)
    return output


def test_a_narrow_terminal_drops_columns_not_names_or_digits(board: Leaderboard) -> None:
    named = replace(board, metrics=[replace(m, headline=True) for m in board.metrics])
    wide, narrow = text_of(named, 200), text_of(named, 30)
    assert "no room" not in wide
    assert f"no room for {named.metrics[1].title}" in narrow.replace("\n", " ")
    for name in ("bound **", "better", "steady", "base *"):
        assert name in narrow
    first = format_figure(named.metrics[0], named.rows[0].metrics[named.metrics[0].name].mean)
    assert first in narrow


def test_a_metric_that_no_row_has_is_left_out(board: Leaderboard) -> None:
    extra = replace(board.metrics[0], name="never", title="Never measured", headline=True)
    assert "Never" not in text_of(replace(board, metrics=[*board.metrics, extra]), 200)


def visible(page: str) -> str:
    """The page without the plotting library, which is most of it."""
    scripts = r"<script(?: type=\"application/gzip\" id=\"library\")?>.*?</script>"
    return re.sub(scripts, "", page, flags=re.DOTALL)


def test_the_table_orders_rows_and_marks_what_is_no_candidate(board: Leaderboard) -> None:
    lines = [line for line in text_of(board).splitlines() if " 0." in line]
    assert [line.split()[0] for line in lines] == ["bound", "better", "steady", "base"]
    assert "bound **" in lines[0]
    assert "base *" in lines[3]
    assert "refused" not in text_of(board)


def test_differences_carry_sign_and_interval(board: Leaderboard) -> None:
    better = next(line for line in text_of(board).splitlines() if line.startswith("better"))
    assert "+30.00 +-0.00" in better


def test_without_differences_the_ordering_metric_carries_its_interval(board: Leaderboard) -> None:
    metrics = tuple(metric for metric in board.metrics if metric.name != "gain")
    lines = text_of(replace(board, metrics=metrics)).splitlines()
    assert "+-0.0248" in next(line for line in lines if line.startswith("better"))
    assert "+-" in next(line for line in lines if line.startswith("bound"))
    assert "0.8100 +-" not in text_of(board)  # where differences have one


def test_two_seeds_show_no_interval_and_say_so() -> None:
    board = run_arena(ToyTask(), ["better", "steady"], seeds=2, jobs=1)
    assert board["better"].metrics["gain"].half_width is not None  # the JSON has it
    assert "+-" not in text_of(board) and "no intervals below 3 seeds" in text_of(board)
    seen = visible(render_report(board, ()))
    assert "&plusmn;" not in seen and "needs three or more, so none is shown" in seen


def test_a_long_name_is_folded_and_no_figure_is_cut(board: Leaderboard) -> None:
    long = "my_package.somewhere_deep.MyVeryOwnRouter:setting=0.25"
    rows = tuple(replace(row, router=long) if row.router == "better" else row for row in board.rows)
    text = text_of(replace(board, rows=rows), width=40)
    assert "..." not in text
    assert "\u2026" not in text
    assert "0.8100" in text
    assert "+30.00 +-0.00" in text


def test_the_legend_explains_only_marks_that_are_there(board: Leaderboard) -> None:
    assert "** bound" in text_of(board)
    without = replace(board, rows=tuple(row for row in board.rows if row.router != "bound"))
    assert "* baseline" in text_of(without)
    assert "**" not in text_of(without)


def test_a_winner_behind_a_baseline_is_told_so(board: Leaderboard, page: str) -> None:
    assert "behind baseline" not in visible(page)
    order = {"base": 0, "better": 1, "steady": 2, "bound": 3, "refused": 4}
    rows = tuple(sorted(board.rows, key=lambda row: order[row.router]))
    assert "behind baseline base</span>" in visible(render_report(replace(board, rows=rows), ()))


def test_every_group_of_rivals_has_a_best_router_of_its_own(board: Leaderboard, page: str) -> None:
    assert page.count("<span>Best router</span>") == 1  # without groups all are rivals
    assert visible(page).count('class="best"') < 2 * len(board.metrics)

    def grouped(row: Row) -> Row:
        group = "told" if row.router == "steady" else "alone"
        cells = [replace(cell, notes={**cell.notes, "group": group}) for cell in row.cells]
        return replace(row, cells=tuple(cells))

    rows = tuple(grouped(row) for row in board.rows)
    found = visible(render_report(replace(board, rows=rows), ()))
    best = re.findall(r"Best router of the group (\w+)</span> <strong>(\w+)</strong>", found)
    assert best == [("alone", "better"), ("told", "steady")]
    assert 'class="best"' not in found  # each is alone in its group
    assert "one for each group of them" in found and "group of them" not in visible(page)


def test_a_router_without_rivals_is_not_bold(board: Leaderboard, page: str) -> None:
    assert visible(page).count('class="best"') >= len(board.metrics)
    alone = replace(board, rows=tuple(row for row in board.rows if row.router != "steady"))
    assert 'class="best"' not in visible(render_report(alone, ()))


def test_a_figure_without_a_direction_is_no_contest(board: Leaderboard) -> None:
    described = tuple(replace(metric, higher_is_better=None) for metric in board.metrics[1:])
    neutral = replace(board, metrics=(board.metrics[0], *described))
    assert visible(render_report(neutral, ())).count('class="best"') == 1
    jsonschema.validate(json.loads(neutral.to_json()), leaderboard_schema())


def test_tables_leave_out_the_module_that_a_router_comes_from(board: Leaderboard) -> None:
    long, twin = "my_package.deep.Mine:share=0.25", "other.Mine:share=0.25"

    def renamed(**names: str) -> Leaderboard:
        rows = [replace(row, router=names.get(row.router, row.router)) for row in board.rows]
        return replace(board, rows=tuple(rows))

    one = renamed(better=long)
    assert "Mine:share=0.25 " in text_of(one) and "my_package" not in text_of(one)
    assert f'<th scope="row" title="{long}">Mine:share=0.25' in render_report(one, ())
    assert long in one.to_json()
    two = renamed(better=long, steady=twin)
    assert table_names(two)[long] == long and table_names(two)[twin] == twin


def test_only_headline_metrics_are_in_the_table(board: Leaderboard) -> None:
    assert "cost" not in text_of(board)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "", "-"),
        (0.12345, "", "0.12"),
        (-0.001, "points", "+0.00"),
        (1234.5, "us", "1,234.50"),
    ],
)
def test_figures_are_formatted_for_reading(value: float | None, unit: str, text: str) -> None:
    assert format_figure(Metric(name="m", title="m", unit=unit, digits=2), value) == text


def test_roles_follow_hindsight_then_baseline(board: Leaderboard) -> None:
    assert {row.router: role_of(row) for row in board.rows} == {
        "bound": "bound", "better": "router", "steady": "router", "base": "baseline",
        "refused": "router",
    }  # fmt: skip


def test_the_page_names_task_evidence_notes_and_failures(page: str) -> None:
    seen = visible(page)
    for text in ("toy", "simulated", "nothing is routed", "toys are not data", "Did not run",
                 "refused does not like this table", "3 paired seeds"):  # fmt: skip
        assert text in seen


def test_the_best_router_is_no_bound(page: str) -> None:
    assert re.search(r"Best router</span> <strong>better</strong>", page)


def test_the_page_asks_for_nothing_outside_itself(page: str) -> None:
    seen = visible(page)
    assert not re.search(r"""(?:src|href|action)\s*=\s*["'](?!data:)""", seen)
    assert "default-src 'none'" in seen
    assert seen.count("@import") == seen.count("url(") == 0


def test_the_plotting_library_is_inside_once(page: str) -> None:
    (packed,) = re.findall(r"id=\"library\">(.*?)</script>", page, flags=re.DOTALL)
    assert b"plotly.js v" in gzip.decompress(base64.b64decode(packed))
    assert len(page) < 2_500_000
    assert len(re.findall(r"<script", visible(page))) == 1  # the data


def test_the_table_has_shadows_where_it_can_be_scrolled_to(page: str) -> None:
    rule = re.search(r"\.scroll \{.*?\}", visible(page), re.DOTALL)
    assert rule is not None and rule[0].count("no-repeat local") == 2
    assert rule[0].count("var(--shade)") == 2 and visible(page).count("--shade: ") == 2


def test_names_cannot_become_markup(board: Leaderboard) -> None:
    evil = "</script><script>alert(1)</script><b>"
    poisoned = replace(
        board,
        task=evil,
        description=evil,
        notes=(evil,),
        rows=tuple(replace(row, router=f"{row.router} {evil}") for row in board.rows),
    )
    page = render_report(poisoned, ToyTask().plots(poisoned))
    assert "<script>alert" not in page
    assert page.count("</script>") == 3
    data = re.search(r'id="plot-data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    plots = json.loads(data.group(1))
    assert plots[0]["series"][0]["name"].endswith(evil)


def test_plot_data_is_valid_json_with_gaps_as_null(page: str) -> None:
    data = re.search(r'id="plot-data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    plots = json.loads(data.group(1))
    assert [plot["kind"] for plot in plots] == ["curves", "bars", "bars", "heat"]
    assert plots[0]["series"][0]["y"] == [0.1, None]


def test_a_board_on_which_everything_failed_still_has_a_page() -> None:
    board = run_arena(ToyTask(baselines=()), ["refused"], seeds=1, jobs=1)
    page = render_report(board, ())
    assert "Best router" not in visible(page)
    assert "Did not run" in page
    assert text_of(board)


def test_both_files_are_written(board: Leaderboard, tmp_path: Path) -> None:
    page, figures = write_report(board, tmp_path / "new")
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert json.loads(figures.read_text("utf-8")) == board.to_dict()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_report(board, tmp_path / "file")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_table_keeps_names_and_the_figures_there_is_room_for(width: int) -> None:
    def made(count: int) -> Table:
        table = Table(box=None)
        table.add_column("router", min_width=NAME_WIDTH, overflow="fold")
        for number in range(count):
            table.add_column(f"f{number}", justify="right", no_wrap=True)
        table.add_row("short", *["1.2345"] * count)
        return table

    console = Console(file=StringIO(), width=width)
    console.print(FittedTable(make=made, titles=[f"f{n}" for n in range(12)], names=["short"]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("1.2345") == {40: 3, 80: 8, 200: 12}[width]
    assert ("no room for" in shown.replace("\n", " ")) == (width < 200)
    assert "short" in shown
