from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from crossroads.core.errors import InputError
from crossroads.core.report import CurvePlot, HeatMap
from crossroads.prompts.routerarena.board import Board, DataSource
from crossroads.prompts.routerarena.page import (
    METRICS,
    is_baseline,
    leaderboard_of,
    metric_values,
    plots_of,
    read_leaderboard,
    remarks_of,
)
from crossroads.prompts.routerarena.submitting import submit
from tests.prompts.routerarena.toy import toy_live, toy_replay, toy_submission


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    """Three submissions on the replay."""
    folder = tmp_path_factory.mktemp("board")
    made = Board(folder=folder, source=DataSource(), evaluation=toy_replay())
    for name, models in (("mix", ("small", "large")), ("s", ("small",)), ("l", ("large",))):
        submit(made, toy_submission(made.evaluation, models=models, router_name=name))
    return made


def test_the_json_is_sorted_by_arena_score(board: Board) -> None:
    rows = read_leaderboard(board.folder)["rows"]
    scores = [row["arena_score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert [row["rank"] for row in rows] == [1, 2, 3]


def test_the_page_holds_everything_and_loads_nothing(board: Board) -> None:
    html = (board.folder / "leaderboard.html").read_text("utf-8")
    assert "replayed outcomes" in html
    assert "default-src 'none'" in html
    for name in ("mix", "Deferral curve", "By difficulty", "By domain"):
        assert name in html


def test_every_metric_of_a_row_is_shown(board: Board) -> None:
    figures = board.results()[0]
    assert set(metric_values(figures)) == {metric.name for metric in METRICS}
    made = leaderboard_of(board, board.results())
    assert [row.router for row in made.rows] == [f["router_name"] for f in board.results()]
    json.dumps(made.to_dict(), allow_nan=False)


def test_the_latency_is_labelled_as_the_submitters_word() -> None:
    (latency,) = (metric for metric in METRICS if metric.name == "latency_score")
    assert latency.unit == "self-reported"
    assert "measured by nobody else" in latency.help


@pytest.mark.parametrize("text", ["{", "{}", '{"rows": [{"rank": 1}]}'])
def test_a_damaged_leaderboard_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "leaderboard.json").write_text(text)
    with pytest.raises(InputError, match=r"leaderboard\.json: damaged .*submit a router again"):
        read_leaderboard(tmp_path)


def test_the_oracles_line_is_at_or_above_every_router(board: Board) -> None:
    curve, *maps = plots_of(board, board.results())
    assert isinstance(curve, CurvePlot) and curve.log_x
    *routers, oracle = curve.series
    assert oracle.role == "bound"
    for router in routers:
        reached = [y for x, y in zip(oracle.x, oracle.y, strict=True) if x <= router.x[0] + 1e-9]
        assert max(reached) >= router.y[0] - 1e-9
    (difficulty, _) = maps
    assert isinstance(difficulty, HeatMap)
    assert [name.split()[0] for name in difficulty.columns] == ["easy", "medium", "hard"]
    assert [plot.title for plot in maps if isinstance(plot, HeatMap)] == [
        "By difficulty", "By domain",
    ]  # fmt: skip


def test_a_map_of_one_label_is_left_out_and_a_live_board_has_no_oracle(tmp_path: Path) -> None:
    live = Board(folder=tmp_path, source=DataSource(), evaluation=toy_live())
    figures: dict[str, Any] = {
        "router_name": "x",
        "cost_per_1k_usd": 1.0,
        "accuracy": 50.0,
        "breakdown": {"domain": {"only": {"accuracy": 0.5, "num_rows": 6}}},
    }
    (curve,) = plots_of(live, [figures])
    assert isinstance(curve, CurvePlot)
    assert [series.name for series in curve.series] == ["x"]


SAW = "fitted on the very rows it is judged on: no figure of new prompts"


def page_of(folder: Path, **submissions: list[str] | None) -> str:
    """Return the page of a board; a submission's remarks, or None for a single model's."""
    made = Board(folder=folder, source=DataSource(), evaluation=toy_replay())
    for name, remarks in submissions.items():
        models = ("large",) if remarks is None else ("small", "large")
        router = toy_submission(
            made.evaluation, models=models, router_name=name, remarks=remarks or []
        )
        submit(made, router)
    return (folder / "leaderboard.html").read_text("utf-8")


def table_row(html: str, name: str) -> str:
    (row,) = re.findall(rf'<tr class="\w+">\s*<th scope="row">{name}.*?</tr>', html, re.DOTALL)
    return str(row)


def test_a_router_fitted_on_the_rows_says_so_in_its_row_and_does_not_compete(
    tmp_path: Path,
) -> None:
    html = page_of(tmp_path, seen=[SAW, "<b>"], fair=[], other=[])
    seen, fair = table_row(html, "seen"), table_row(html, "fair")
    assert f'seen<small class="told">{SAW}</small>' in seen
    assert '<small class="told">&lt;b&gt;</small>' in seen
    assert 'class="best"' not in seen
    assert 'class="best"' in fair
    assert "<span>Best router</span> <strong>fair</strong>" in html


def test_baselines_are_tagged_and_do_not_compete(tmp_path: Path) -> None:
    html = page_of(tmp_path, seen=[SAW], random=[], named=None)
    assert "Best router" not in html
    assert 'class="best"' not in html
    for name in ("random", "named"):
        assert '<span class="role">baseline</span>' in table_row(html, name)


@pytest.mark.parametrize(
    ("name", "models", "expected"),
    [
        ("random", ["a", "b"], True),
        ("always-a", ["a"], True),
        ("renamed", ["a"], True),
        ("randomised", ["a", "b"], False),
    ],
)
def test_references_are_baselines(name: str, models: list[str], *, expected: bool) -> None:
    assert is_baseline({"router_name": name, "models": models}) is expected


def test_a_board_from_before_remarks_has_none() -> None:
    assert remarks_of({"notes": ["3 rows have no answer"]}) == []
