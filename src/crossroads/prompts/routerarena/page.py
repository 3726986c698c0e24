"""The leaderboard as JSON and as a page: table, deferral curve, breakdowns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from crossroads import __version__
from crossroads.core.arena import Cell, Leaderboard, Metric, Row
from crossroads.core.files import write_atomically
from crossroads.core.provenance import machine
from crossroads.core.report import CurvePlot, HeatMap, Plot, Series, render_report
from crossroads.core.statistics import summarise
from crossroads.datasets.routerarena import BLOOM_LEVELS
from crossroads.prompts.routerarena.difficulty import LEVELS
from crossroads.prompts.routerarena.figures import deferral_curve
from crossroads.prompts.routerarena.prepare import RANDOM
from crossroads.prompts.routerarena.stored import Ranking, read_stored

if TYPE_CHECKING:
    from crossroads.prompts.routerarena.board import Board

_ORDERED = {"difficulty": LEVELS, "bloom": BLOOM_LEVELS}  # other labels by the alphabet

JSON_NAME, PAGE_NAME = "leaderboard.json", "leaderboard.html"

METRICS = (
    Metric(
        name="arena_score",
        title="arena",
        digits=2,
        help="100 x weighted harmonic mean of accuracy and cheapness (log scale of cost); accuracy "
        "weighs ten times as much",
    ),
    Metric(
        name="accuracy",
        title="accuracy",
        unit="%",
        digits=2,
        help="mean score of the chosen models' answers; a failed answer scores 0",
    ),
    Metric(
        name="cost_per_1k_usd",
        title="cost",
        unit="USD / 1,000",
        higher_is_better=False,
        digits=4,
        help="what 1,000 queries cost",
    ),
    Metric(
        name="optimal_selection",
        title="opt. choice",
        unit="%",
        digits=1,
        help="share of solvable rows where the cheapest right model was chosen",
    ),
    Metric(
        name="optimal_cost",
        title="opt. cost",
        unit="%",
        digits=1,
        headline=False,
        help="cost of those models over the cost of the chosen ones, as sums",
    ),
    Metric(
        name="optimal_accuracy",
        title="opt. accuracy",
        unit="%",
        digits=1,
        headline=False,
        help="score of the chosen models over the score of those models",
    ),
    Metric(
        name="robustness",
        title="robust",
        unit="%",
        digits=1,
        help="share of reworded prompts that go to the same model",
    ),
    Metric(
        name="latency_score",
        title="latency",
        unit="self-reported",
        digits=1,
        help="time of a decision as the submission states it, measured by nobody else: 100 for "
        "1 ms and less, 0 for 10 s and more, logarithmic",
    ),
    Metric(
        name="num_failed",
        title="failed",
        higher_is_better=False,
        digits=0,
        headline=False,
        help="rows without an answer",
    ),
)


def write_leaderboard(board: Board) -> None:
    """Write both files of a board from its results; the same results give the same bytes."""
    results = board.results()
    content = {
        "data": board.evaluation.name,
        "evidence": board.evaluation.evidence,
        "num_rows": len(board.evaluation.rows),
        "notes": list(board.evaluation.notes),
        "rows": [{"rank": n, **figures} for n, figures in enumerate(results, start=1)],
    }
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(board.folder / JSON_NAME, text)
    shown = leaderboard_of(board, results)
    told = [
        replace(row, router=_name_with_remarks(figures))
        for row, figures in zip(shown.rows, results, strict=True)
    ]
    page = render_report(replace(shown, rows=tuple(told)), plots_of(board, results))
    write_atomically(board.folder / PAGE_NAME, page)


def read_leaderboard(folder: Path) -> dict[str, Any]:
    """Return the content of a board's ``leaderboard.json``. Raises InputError if damaged."""
    content: dict[str, Any] = read_stored(
        folder / JSON_NAME,
        Ranking,
        remedy="submit a router again: crossroads arena submit writes it anew",
    )
    return content


def metric_values(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the value of each of ``METRICS``; None where it was not measured."""
    optimality = (figures["optimality"] or {}).get("all_solvable") or {}
    return {
        "arena_score": figures["arena_score"],
        "accuracy": figures["accuracy"],
        "cost_per_1k_usd": figures["cost_per_1k_usd"],
        "optimal_selection": optimality.get("selection"),
        "optimal_cost": optimality.get("cost"),
        "optimal_accuracy": optimality.get("accuracy"),
        "robustness": (figures["robustness"] or {}).get("share"),
        "latency_score": (figures["latency"] or {}).get("score"),
        "num_failed": figures["num_failed"],
    }


def leaderboard_of(board: Board, results: Sequence[Mapping[str, Any]]) -> Leaderboard:
    """Return the board in the form reports are made of."""
    evaluation = board.evaluation
    notes = [*evaluation.notes]
    for figures in results:
        notes += (f"{figures['router_name']}: {note}" for note in figures["notes"])
    models = ", ".join(evaluation.pool.names)
    return Leaderboard(
        family="RouterArena",
        task=evaluation.name,
        description=f"{len(evaluation.rows)} rows; models: {models}",
        evidence=evaluation.evidence,
        notes=tuple(notes),
        seeds=(),
        metrics=METRICS,
        baselines=(),
        rows=tuple(_row(figures) for figures in results),
        version=__version__,
        machine=machine(),
        created=max((figures["submitted"] for figures in results), default=""),
    )


def plots_of(board: Board, results: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Return the deferral curve, then one map of accuracies by label for each aspect."""
    maps = [
        _accuracy_map(aspect, results) for aspect in ("difficulty", "domain", "bloom", "source")
    ]
    return [_deferral_plot(board, results), *(found for found in maps if found is not None)]


def is_baseline(figures: Mapping[str, Any]) -> bool:
    """Whether a submission is a reference that does not compete: ``random``, or one model."""
    name: str = figures["router_name"]
    return name == RANDOM or name.startswith("always-") or len(figures["models"]) == 1


def remarks_of(figures: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know of a submission; with any it does not compete.

    Boards made before remarks were kept apart from the other notes have none.
    """
    return list(figures.get("remarks", ()))


def _row(figures: Mapping[str, Any]) -> Row:
    values = metric_values(figures)
    # A report's bounds, which may have seen the answers, do not compete either.
    notes = {"hindsight": True} if remarks_of(figures) else {}
    return Row(
        router=figures["router_name"],
        baseline=is_baseline(figures),
        metrics={name: summarise([value]) for name, value in values.items()},
        cells=(Cell(metrics={}, fit_seconds=0.0, decide_seconds=0.0, notes=notes),),
    )


def _name_with_remarks(figures: Mapping[str, Any]) -> str:
    """Return a submission's name for the page, its remarks in small letters under it."""
    name: str = figures["router_name"]
    small = Markup('<small class="told">{}</small>')
    return Markup("{}{}").format(
        name, Markup("").join(small.format(remark) for remark in remarks_of(figures))
    )


def _deferral_plot(board: Board, results: Sequence[Mapping[str, Any]]) -> CurvePlot:
    series = [
        Series(
            name=figures["router_name"],
            x=[figures["cost_per_1k_usd"]],
            y=[figures["accuracy"]],
            line=False,
            marks=True,
            label=[figures["router_name"]],
        )
        for figures in results
    ]
    table = board.evaluation.replay
    caption = "Each router at its cost and accuracy; up and to the left is better."
    if table is not None:
        assert table.cost is not None
        cost, accuracy = deferral_curve(table.score, table.cost)
        priced = [(c, 100 * a) for c, a in zip(cost, accuracy, strict=True) if c > 0]
        if priced:  # what is free has no place on a logarithmic axis
            dearest = max(priced[-1][0], *(figures["cost_per_1k_usd"] for figures in results))
            x, y = zip(*priced, (dearest, priced[-1][1]), strict=True)
            series.append(Series(name="oracle", x=x, y=y, role="bound"))
        caption += " The oracle's line is what perfect foresight reaches on the board's models."
    return CurvePlot(
        title="Deferral curve",
        caption=caption,
        x_label="USD per 1,000 queries",
        y_label="accuracy, %",
        series=series,
        log_x=True,
    )


def _accuracy_map(aspect: str, results: Sequence[Mapping[str, Any]]) -> HeatMap | None:
    """Points above or below the board's mean, by label; None with fewer than two labels."""
    found = {label for figures in results for label in figures["breakdown"].get(aspect, {})}
    labels = [label for label in _ORDERED.get(aspect, ()) if label in found]
    labels += sorted(found - set(labels))
    if len(labels) < 2:
        return None
    accuracy = [
        [100 * figures["breakdown"][aspect][label]["accuracy"] for label in labels]
        for figures in results
    ]
    means = [sum(column) / len(column) for column in zip(*accuracy, strict=True)]
    values = [[a - mean for a, mean in zip(row, means, strict=True)] for row in accuracy]
    names = [f"{label} ({mean:.0f} %)" for label, mean in zip(labels, means, strict=True)]
    return HeatMap(
        title=f"By {aspect}",
        caption="Accuracy above or below the mean of the board's routers, which is in brackets.",
        unit="points",
        rows=[figures["router_name"] for figures in results],
        columns=names,
        values=values,
        limit=max(5.0, *(abs(value) for row in values for value in row)),
    )
