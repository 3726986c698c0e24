"""The prompt task: what routers see, what is judged, what counts as the same task."""

from __future__ import annotations

import importlib.util
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossroads.core.arena import run_arena
from crossroads.core.errors import InputError, UsageError
from crossroads.core.report import render_report, role_of
from crossroads.prompts import tasks
from crossroads.prompts.arena_metrics import TIMINGS
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.router import PromptRouter, Queries
from crossroads.prompts.tasks import PromptTask, prompt_task
from tests.prompts.toy_routers import NAN, Means, Oracle, build_toy, make_table, random_table

HALVES = ["train", "train", "test", "test"]


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "build_router", build_toy)


def run(task: PromptTask, router: str, seed: int = 0) -> dict[str, float]:
    return dict(task.run(router, seed).metrics)


def test_the_best_single_model_is_chosen_in_training() -> None:
    table = make_table([[1, 0], [1, 0], [0, 1], [0, 1]], split=HALVES)
    cell = PromptTask(table=table).run("best-single", 0)
    assert cell.notes["best_single"] == "a"
    assert cell.metrics["quality"] == 0  # b would have been right
    assert cell.metrics["gain_over_best_single"] == 0
    assert run(PromptTask(table=table), "last")["gain_over_best_single"] == 100


def test_figures_of_a_table_reckoned_by_hand() -> None:
    scores = [[0, 1], [0, 1], [0, 1], [1, 0.5]]
    costs = [[0.1, 0.4], [0.1, 0.4], [0.1, 0.5], [0.2, 0.5]]
    metrics = run(PromptTask(table=make_table(scores, costs, split=HALVES)), "best-single")
    assert metrics["quality"] == pytest.approx(0.75)
    assert metrics["cost_per_1k"] == pytest.approx(500)
    assert metrics["regret"] == pytest.approx(0.25)
    # Mixing a (0.15 USD, 0.5) and b (0.5 USD, 0.75) at random gives a straight line.
    assert metrics["aiq"] == pytest.approx(100 * (0.5 + 0.75) / 2)
    assert metrics["gain_over_mix"] == pytest.approx(0, abs=1e-9)
    assert metrics["cost_at_equal_quality"] == pytest.approx(1)


def test_the_arena_score_takes_the_cost_of_a_thousand_prompts() -> None:
    scores = [[0, 1], [0, 1], [0, 1], [1, 0.5]]
    costs = [[1e-4, 4e-4], [1e-4, 4e-4], [1e-4, 5e-4], [2e-4, 5e-4]]
    metrics = run(PromptTask(table=make_table(scores, costs, split=HALVES)), "best-single")
    assert metrics["cost_per_1k"] == pytest.approx(0.5)
    # C = log2(200 / 0.5) / log2(200 / 0.0044) = 0.55867; 1.1 x 0.75 C / (0.1 x 0.75 + C).
    assert metrics["arena_score"] == pytest.approx(0.7273549, abs=1e-6)


def test_costs_that_are_no_dollars_are_named_and_have_no_arena_score() -> None:
    table = random_table()
    for unit, has_score in (("USD", True), ("strong calls", False)):
        task = PromptTask(table=replace(table, cost_unit=unit))
        metrics = {m.name: m for m in task.metrics}
        assert metrics["cost_per_1k"].unit == f"{unit} / 1k"
        assert ("arena_score" in metrics) == has_score
        assert set(run(task, "last")) == set(metrics)


def test_frontier_points_tell_the_tradeoff_that_reaches_them() -> None:
    scores = [[0, 1], [0, 1], [0, 1], [1, 0.5]]
    costs = [[0.1, 0.4], [0.1, 0.4], [0.1, 0.5], [0.2, 0.5]]
    table = make_table(scores, costs, split=HALVES)
    curves = PromptTask(table=table).run("oracle", 0).curves
    # b costs 0.3 USD more in training and is better by 1 on the prompt that still goes to it.
    expected = [[350.0, 1.0, 0.0], [150.0, 0.5, 1 / 0.3]]
    np.testing.assert_allclose(curves["frontier"], expected)
    np.testing.assert_allclose(curves["hull"], expected[::-1])


def test_an_oracle_matches_the_best_single_model_for_less() -> None:
    scores = [[0, 1], [0, 1], [0, 1], [1, 0.5]]
    costs = [[0.1, 0.4], [0.1, 0.4], [0.1, 0.5], [0.2, 0.5]]
    metrics = run(PromptTask(table=make_table(scores, costs, split=HALVES)), "oracle")
    assert metrics["quality"] == 1
    assert metrics["regret"] == 0
    # From a alone (0.15, 0.5) to one prompt each (0.35, 1.0): 0.75 at 0.25 USD, half of b's 0.5.
    assert metrics["cost_at_equal_quality"] == pytest.approx(0.5)


def test_a_bound_is_judged_by_its_own_credit() -> None:
    task = PromptTask(table=random_table())
    plain, half = run(task, "oracle"), run(task, "oracle-chance-aware")
    assert half["quality"] == pytest.approx(plain["quality"] / 2)
    assert math.isnan(half["regret"])


def test_only_routers_with_hindsight_see_the_answers() -> None:
    task = PromptTask(table=random_table())
    for router in ("best-single", "last", "cheapest"):
        assert not task.run(router, 0).notes["hindsight"]  # the toy asserts that truth is hidden
    assert task.run("oracle", 0).notes["hindsight"]


def test_a_router_is_told_no_more_than_a_served_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[bool, list[Queries]] = {True: [], False: []}
    for cls in (Means, Oracle):

        def predict(self: PromptRouter, queries: Queries) -> Any:
            seen[self.hindsight].append(queries)
            return np.zeros((len(queries), len(self.models)))

        monkeypatch.setattr(cls, "_predict", predict)
    task = PromptTask(table=random_table())
    for router in ("best-single", "oracle"):
        assert set(task.run(router, 0).notes["domains"]) == {"algebra", "law"}
    labels = ("truth", "domains", "chance")
    assert seen[False]
    assert all(getattr(asked, label) is None for asked in seen[False] for label in labels)
    assert all(getattr(asked, label) is not None for asked in seen[True] for label in labels)


def test_a_split_of_the_tables_own_is_noted() -> None:
    table = make_table([[1, 0]] * 4, split=HALVES)
    note = (
        "the split is the table's own: seeds vary the router's randomness only, "
        "intervals do not cover the choice of prompts"
    )
    assert note in PromptTask(table=table).notes
    assert note not in PromptTask(table=replace(table, split=None)).notes


def test_training_and_judging_share_no_prompt() -> None:
    table = random_table(n=100)
    task = PromptTask(table=table, train_share=0.5)
    for seed in range(3):
        train, test = table.split_by_hash(seed, 0.5)
        notes = task.run("best-single", seed).notes
        assert (notes["num_train"], notes["num_judged"]) == (len(train), len(test))
        assert not set(train) & set(test)


def with_gaps() -> OutcomeTable:
    scores = [[1, 0], [1, NAN], [1, 0], [NAN, 1], [1, 1]]
    costs = [[1, 2], [1, NAN], [1, 3], [NAN, 3], [1, 3]]
    return make_table(scores, costs, split=["train", "train", "test", "test", "test"])


def test_prompts_some_model_did_not_answer_are_learnt_from_but_not_judged() -> None:
    task = PromptTask(table=with_gaps())
    cell = task.run("last", 0)
    assert (cell.notes["num_train"], cell.notes["num_judged"]) == (2, 2)
    assert cell.metrics["quality"] == pytest.approx(0.5)
    assert "2 of 5 prompts were not answered by every model: learnt from, not judged" in task.notes


def test_missing_can_count_as_wrong_at_the_mean_cost() -> None:
    task = PromptTask(table=with_gaps(), missing="wrong")
    last, first = task.run("last", 0), task.run("best-single", 0)
    assert last.notes["num_judged"] == 3
    assert last.metrics["quality"] == pytest.approx(2 / 3)
    assert first.metrics["quality"] == pytest.approx(2 / 3)  # a was not run on one of three
    assert first.metrics["cost_per_1k"] == pytest.approx(1000)
    assert any("counts as wrong" in note for note in task.notes)


def test_missing_counts_as_wrong_in_training_too() -> None:
    scores = [[0.6, 1], [0.6, NAN], [0.6, NAN], [1, 0]]
    table = make_table(scores, split=["train", "train", "train", "test"])
    assert PromptTask(table=table).run("best-single", 0).notes["best_single"] == "b"
    assert (
        PromptTask(table=table, missing="wrong").run("best-single", 0).notes["best_single"] == "a"
    )


def test_no_judged_prompt_is_a_user_error_with_a_remedy() -> None:
    table = make_table([[1, 0], [1, NAN]], split=["train", "test"])
    with pytest.raises(InputError, match="--missing wrong"):
        PromptTask(table=table).run("best-single", 0)


def test_without_prices_cost_figures_are_left_out_and_a_note_says_so() -> None:
    scores = [[1, 0], [1, 0], [0, 1], [0, 1]]
    partly = [[1, NAN], [1, NAN], [1, NAN], [1, NAN]]
    for costs, who in ((None, "any model"), (partly, "b")):
        task = PromptTask(table=make_table(scores, costs, split=HALVES))
        assert not {"cost_per_1k", "aiq", "arena_score"} & {m.name for m in task.metrics}
        assert set(run(task, "last")) == {m.name for m in task.metrics}
        assert any(f"no cost is known of {who} " in note for note in task.notes)
        assert "cheapest" not in task.baselines


def test_a_single_unknown_cost_counts_at_the_models_mean() -> None:
    costs = [[1, 2], [1, 4], [1, NAN], [1, 5]]
    task = PromptTask(table=make_table([[0, 1]] * 4, costs, split=HALVES))
    assert run(task, "last")["cost_per_1k"] == pytest.approx(1000 * (3 + 5) / 2)
    assert "1 answers of unknown cost count at the model's mean cost" in task.notes


def test_a_model_priced_only_among_test_prompts_does_not_look_free() -> None:
    costs = [[1, NAN], [1, NAN], [1, 9], [1, 9]]
    task = PromptTask(table=make_table([[1, 1]] * 4, costs, split=HALVES))
    # Both models are equally good, so the choice goes to the one that is expected to be cheaper.
    assert run(task, "best-single")["cost_per_1k"] == pytest.approx(1000)


def test_free_models_have_no_budget_to_range_over() -> None:
    table = make_table([[1, 0], [1, 0], [0, 1], [0, 1]], [[0, 0]] * 4, split=HALVES)
    metrics = run(PromptTask(table=table), "best-single")
    assert metrics["cost_per_1k"] == 0
    for name in ("aiq", "gain_over_mix", "cost_at_equal_quality", "arena_score"):
        assert math.isnan(metrics[name]), name


@pytest.mark.parametrize("k", [1, 2, 3])
def test_every_declared_metric_is_measured_and_no_other(k: int) -> None:
    task = PromptTask(table=random_table(k=k))
    for router in (*task.baselines, "last"):
        assert set(run(task, router)) == {m.name for m in task.metrics}
    assert ("apgr" in {m.name for m in task.metrics}) == (k == 2)


def test_two_models_have_a_recovered_gap() -> None:
    task = PromptTask(table=random_table(n=2000, k=2))
    constant, perfect = run(task, "last"), run(task, "oracle")
    assert constant["apgr"] == pytest.approx(0.5)  # no preference among prompts: mixed at random
    assert constant["cpt50"] == pytest.approx(0.5)
    assert perfect["apgr"] > 1
    assert perfect["cpt80"] < constant["cpt80"]


def test_the_same_arguments_give_the_same_figures() -> None:
    task = PromptTask(table=random_table())
    for router in ("best-single", "random", "oracle"):
        first, second = task.run(router, 1), pickle.loads(pickle.dumps(task)).run(router, 1)
        untimed = {k: v for k, v in first.metrics.items() if k not in TIMINGS}
        assert untimed == pytest.approx(
            {k: v for k, v in second.metrics.items() if k not in TIMINGS}, nan_ok=True, rel=0, abs=0
        )
        assert first.curves == second.curves
        assert first.notes == second.notes
    assert run(task, "random", 1) != run(task, "random", 2)


def test_domains_and_shares_are_told() -> None:
    cell = PromptTask(table=random_table(n=300)).run("last", 0)
    domains = cell.notes["domains"]
    assert set(domains) == {"algebra", "law"}
    counted = sum(d["count"] for d in domains.values())
    assert counted == cell.notes["num_judged"]
    total = sum(d["quality"] * d["count"] for d in domains.values()) / counted
    assert total == pytest.approx(cell.metrics["quality"])
    assert cell.notes["shares"] == {"c": 1.0}


def test_the_fingerprint_follows_whatever_could_change_a_figure() -> None:
    table = random_table()
    task = PromptTask(table=table)
    assert PromptTask(table=random_table()).fingerprint == task.fingerprint
    assert pickle.loads(pickle.dumps(task)).fingerprint == task.fingerprint
    assert replace(task, name="other").fingerprint == task.fingerprint
    changed = [
        replace(task, train_share=0.6),
        replace(task, missing="wrong"),
        PromptTask(table=random_table(seed=1)),
        PromptTask(table=replace(table, cost=table.cost * 2)),
        PromptTask(table=replace(table, cost=None)),
        PromptTask(table=replace(table, cost_unit="calls")),
        PromptTask(table=replace(table, models=("a", "b", "x"))),
        PromptTask(table=replace(table, domain=table.domain[::-1])),
        PromptTask(table=replace(table, prompt_hash=table.prompt_hash + np.uint64(1))),
        PromptTask(table=replace(table, embeddings={"static": table.embeddings["static"] + 1})),
        PromptTask(table=table.take(np.arange(100))),
    ]
    prints = {task.fingerprint, *(other.fingerprint for other in changed)}
    assert len(prints) == len(changed) + 1


def test_the_identity_of_a_router_follows_its_settings_and_its_foreign_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = PromptTask(table=random_table())
    assert task.identify("last:margin=2") != task.identify("last")
    source = (
        "from tests.prompts.toy_routers import Last\n"
        "class Foreign(Last):\n    name = 'foreign'\n    level = {}\n"
    )

    def identity(level: int) -> str:
        path = tmp_path / "foreign.py"
        path.write_text(source.format(level))
        spec = importlib.util.spec_from_file_location("foreign", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(importlib.sys.modules, "foreign", module)  # type: ignore[attr-defined]
        spec.loader.exec_module(module)
        monkeypatch.setattr(tasks, "build_router", lambda _: module.Foreign())
        return task.identify("foreign")

    assert identity(1) == identity(1)
    assert identity(1) != identity(2)


def test_unknown_routers_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown router 'lst'; did you mean 'last'"):
        PromptTask(table=random_table()).identify("lst")


@pytest.mark.parametrize(
    "options", [{"train_share": 0.0}, {"train_share": 1.0}, {"missing": "ignore"}]
)
def test_wrong_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        PromptTask(table=random_table(), **options)


def test_a_table_without_the_encoders_embeddings_is_refused() -> None:
    with pytest.raises(InputError, match="'minilm'"):
        PromptTask(table=random_table(), encoder="minilm")


def test_a_table_with_its_own_embeddings_is_not_encoded_again() -> None:
    table = random_table()
    task = prompt_task(table, name="mine", pool="p", remarks=["declared prices"])
    assert task.table.embeddings["static"] is table.embeddings["static"]
    assert (task.name, task.notes[0]) == ("mine", "declared prices")
    assert "200 prompts x 3 models of pool p; 70% to learn from" in task.description


def test_the_chance_aware_bound_needs_a_chance_column() -> None:
    assert "oracle-chance-aware" in PromptTask(table=random_table()).baselines
    assert "oracle-chance-aware" not in PromptTask(table=random_table(chance=None)).baselines


def test_an_arena_of_prompts_has_a_board_and_a_page(tmp_path: Path) -> None:
    task = PromptTask(table=random_table(n=400), name="random")
    board = run_arena(task, ["last", "last:margin=2"], seeds=2, out=tmp_path, jobs=1)
    assert {row.router: role_of(row) for row in board.rows} == {
        "oracle": "bound", "oracle-chance-aware": "bound", "last": "router",
        "last:margin=2": "router", "best-single": "baseline", "cheapest": "baseline",
        "random": "baseline",
    }  # fmt: skip
    assert board.evidence == "replayed outcomes"
    plots = task.plots(board)
    assert [plot.kind for plot in plots] == [
        "curves", "curves", "bars", "bars", "heat", "heat", "curves", "bars",
    ]  # fmt: skip
    assert "replayed outcomes" in render_report(board, plots)
    again = run_arena(task, ["last", "last:margin=2"], seeds=2, out=tmp_path, jobs=1)
    assert again.reused == 14
    assert [row.router for row in again.rows] == [row.router for row in board.rows]
