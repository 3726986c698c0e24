from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossroads.adapters.collection.arms import share_closed
from crossroads.adapters.collection.evaluation import TaskScore
from crossroads.adapters.collection.tasks import Task
from crossroads.adapters.comparing import (
    Comparison,
    candidates,
    compare,
)
from crossroads.adapters.measuring import Arm
from crossroads.adapters.needs import GROUPS
from crossroads.adapters.routers import router_names
from crossroads.core.errors import InputError, UsageError
from tests.adapters.collection.toys import easy_rows, task
from tests.adapters.saved import EXPERTS, bank, base_model

TASKS = [task("words"), replace(task("new", easy_rows("z")), held_in=False)]


def score(name: str, seed: int, nll: float, accuracy: float | None = None) -> TaskScore:
    return TaskScore(
        arm="", task=name, seed=seed, nll=nll, accuracy=accuracy, accuracy_by_mean=None,
        rows=1, tokens=1,
    )  # fmt: skip


def compared(**arms: list[TaskScore]) -> Comparison:
    tasks: list[Task] = [task("words"), task("letters"), task("new")]
    return Comparison(
        model="tiny", experts=EXPERTS, tasks=tuple(tasks), rows=1, seeds=(0, 1),
        arms=tuple(Arm(router=name, scores=tuple(found)) for name, found in arms.items()),
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    cache = tmp_path_factory.mktemp("scores")
    how: dict[str, Any] = {"rows": 3, "seeds": (0, 1), "cache": cache}
    return compare(base_model(), bank(), ["phatgoose", "arrow", "ties"], TASKS, **how)


def test_means_are_over_tasks_of_a_side_by_seed() -> None:
    both = [
        *(score("words", 0, 1.0, 0.5), score("letters", 0, 3.0), score("new", 0, 9.0, 1.0)),
        *(score("words", 1, 2.0, 0.0), score("letters", 1, 6.0), score("new", 1, 7.0, 1.0)),
    ]
    board = compared(mine=both)
    mine = board["mine"]
    held_in, held_out = board.mean(mine, "held_in"), board.mean(mine, "held_out")
    assert held_in is not None and held_in.per_seed == (2.0, 4.0)
    assert held_out is not None and held_out.per_seed == (9.0, 7.0)
    accuracy = board.mean(mine, "held_in", "accuracy")
    assert accuracy is not None and accuracy.per_seed == (0.5, 0.0)  # tasks with options alone
    assert board.mean(Arm(router="none"), "held_in") is None
    with pytest.raises(UsageError, match="did you mean 'mine'"):
        board["mien"]


def test_the_share_closed_is_the_collections() -> None:
    losses = {"uniform": (4.0, 6.0), "oracle": (2.0, 2.0), "mine": (3.0, 3.0)}
    scores = {name: [score("words", s, v) for s, v in enumerate(vs)] for name, vs in losses.items()}
    board = compared(**scores)
    closed = board.closed(board["mine"])
    assert closed is not None and closed.per_seed == (0.5, 0.75)
    expected = share_closed(scores["mine"], worse=scores["uniform"], better=scores["oracle"])
    assert closed.per_seed == tuple(expected[seed] for seed in (0, 1))


def test_tasks_whose_seeds_share_their_rows_add_no_certainty() -> None:
    losses = {"words": (1.0, 1.0), "letters": (3.0, 5.0), "new": (2.0, 2.0)}
    scores = [score(task, seed, v) for task, vs in losses.items() for seed, v in enumerate(vs)]
    board = replace(compared(mine=scores), repeated=frozenset({"words", "new"}))
    one, other = board.mean(board["mine"], "held_in"), board.mean(board["mine"], "held_out")
    assert one is not None and one.low is not None  # another task's rows differ
    assert other is not None and (other.mean, other.low, other.high) == (2.0, None, None)
    assert "of words, new: they add nothing" in board.notes[0]
    arm = board.to_dict()["groups"][0]["arms"][0]["tasks"]
    assert arm["words"]["nll"]["low"] is None and arm["letters"]["nll"]["low"] is not None
    assert compared(mine=scores).notes == ()


def test_the_rows_of_every_task_are_told() -> None:
    how: dict[str, Any] = {"rows": 3, "seeds": (0, 1)}
    few = replace(TASKS[0], rows={**TASKS[0].rows, "test": TASKS[0].rows["test"][:2]})
    board = compare(base_model(), bank(), [], [few, TASKS[1]], **how)
    told = {one["name"]: (one["rows"], one["same_rows"]) for one in board.to_dict()["tasks"]}
    assert told == {"words": (2, True), "new": (3, False)}
    arm = board["uniform"]
    found, other = board.mean(arm, "held_in"), board.mean(arm, "held_out")
    assert found is not None and found.low is None and len(set(found.per_seed)) == 1
    assert other is not None and other.low is not None
    closed = board.closed(arm)
    assert closed is None or closed.low is None


def test_there_is_no_share_without_a_gap() -> None:
    same = [score("words", s, 2.0) for s in (0, 1)]
    board = compared(uniform=same, oracle=same, mine=same)
    assert board.closed(board["mine"]) is None
    assert compared(mine=same).closed(compared(mine=same)["mine"]) is None


def test_a_note_says_why_nobody_closes_a_gap() -> None:
    worse = compared(uniform=[score("words", s, 1.0) for s in (0, 1)],
                     oracle=[score("words", s, 2.0) for s in (0, 1)])  # fmt: skip
    assert worse.notes == (
        "there is no gap to close: for a seed or more, the oracle's loss held in is not below "
        "the uniform mix's",
    )
    apart = compared(uniform=[score("new", s, 1.0) for s in (0, 1)],
                     oracle=[score("new", s, 2.0) for s in (0, 1)])  # fmt: skip
    assert apart.notes == ()


def test_arms_stand_in_groups_best_first(found: Comparison) -> None:
    told = found.to_dict()
    by_group = {one["group"]: [arm["router"] for arm in one["arms"]] for one in told["groups"]}
    assert list(by_group) == [group for group in GROUPS if group in by_group]
    assert set(by_group["reference"]) == {"base", "oracle"}
    assert set(by_group["adapters"]) == {"uniform", "arrow", "ties"}
    assert by_group["contributors"] == ["phatgoose"]
    for one in told["groups"]:
        losses = [arm["held_in"]["nll"]["mean"] for arm in one["arms"]]
        assert losses == sorted(losses)


def test_an_arm_has_its_figures_axes_and_needs(found: Comparison) -> None:
    told = found.to_dict()
    arms = {arm["router"]: arm for one in told["groups"] for arm in one["arms"]}
    mine = arms["phatgoose"]
    assert mine["needs"] == ["gate of every expert"]
    assert mine["axes"]["user_dataset"] == "Zero-Shot" and arms["uniform"]["axes"] is None
    assert mine["settings"]["k"] == 2 and mine["parameters"] > 0 and mine["error"] is None
    assert mine["tasks"]["words"]["accuracy"] is not None
    assert mine["tasks"]["new"]["accuracy"] is None
    assert mine["tokens_per_s"] > 0 and arms["base"]["tokens_per_s"] is None
    assert {t["name"]: t["side"] for t in told["tasks"]} == {"words": "held_in", "new": "held_out"}


def test_the_oracle_is_the_base_model_where_nobody_was_trained(found: Comparison) -> None:
    def by_seed(router: str, task: str) -> list[float]:
        return [s.nll for s in found[router].scores if s.task == task]

    assert by_seed("oracle", "new") == pytest.approx(by_seed("base", "new"))
    assert by_seed("oracle", "words") != pytest.approx(by_seed("base", "words"))


def test_a_comparison_that_was_stopped_goes_on(tmp_path: Path) -> None:
    how: dict[str, Any] = {"rows": 2, "seeds": (0,), "cache": tmp_path}
    first = compare(base_model(), bank(), ["arrow"], TASKS, **how)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = compare(base_model(), bank(), ["arrow", "ties"], TASKS, **how)
    assert again["arrow"].scores == first["arrow"].scores
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_a_router_that_cannot_run_is_an_arm_with_its_error() -> None:
    board = compare(base_model(), bank(), ["retrieval", "x-lora"], TASKS, rows=1, seeds=(0,))
    assert "has no embeddings" in str(board["retrieval"].error)
    assert board["retrieval"].group == "contributors"
    assert "nobody trained" in str(board["x-lora"].error)
    assert board["uniform"].error is None


def test_progress_counts_all_rows_of_all_arms() -> None:
    seen: list[tuple[int, int]] = []
    compare(
        base_model(), bank(), ["arrow"], TASKS, rows=2, seeds=(0,),
        progress=lambda done, whole: seen.append((done, whole)),
    )  # fmt: skip
    assert seen[-1] == (16, 16)  # four arms, two tasks, two rows
    assert seen == sorted(seen)


def test_the_model_is_given_back() -> None:
    base = base_model()
    before = [type(module) for module in base.model.modules()]
    compare(base, bank(), ["phatgoose"], TASKS, rows=1, seeds=(0,))
    assert [type(module) for module in base.model.modules()] == before


def test_unknown_routers_and_missing_tasks_are_refused_at_once() -> None:
    with pytest.raises(UsageError, match="did you mean 'arrow'"):
        compare(base_model(), bank(), ["arow"], TASKS, rows=1)
    with pytest.raises(UsageError, match="no tasks"):
        compare(base_model(), bank(), ["arrow"], [], rows=1)


def test_candidates_are_what_the_bank_has_data_for() -> None:
    able, left_out = candidates(bank())
    assert {"phatgoose", "arrow", "uniform", "ties", "task-arithmetic"} <= set(able)
    assert {"named", "poly", "task-moe"} <= set(left_out)  # nobody disappears
    assert "told the task of every prompt by a number" in left_out["poly"]
    assert "which is the oracle" in left_out["named"]
    assert {*able, *left_out} == {*router_names()}
    assert "best-single" in left_out and "best-single" in candidates(bank(), None, TASKS)[0]
    assert "no embeddings" in left_out["retrieval"] and "nobody trained" in left_out["x-lora"]
    assert not set(able) & set(left_out)


def test_candidates_that_are_taught_are_all_but_the_ones_told_from_outside() -> None:
    able, left_out = candidates(bank(), lessons=TASKS)
    assert {"x-lora", "poly", "task-moe", "lorahub", "multitask", "average-activation"} <= {*able}
    assert set(left_out) == {"named", "mogu", "retrieval", "glider", "best-single"}
    assert "verify mogu" in left_out["mogu"]


def test_candidates_that_nothing_can_be_taught_to_are_left_out_by_name() -> None:
    able, left_out = candidates(bank(), lessons=[])
    assert "lorahub" in able  # learns from each task's own rows
    for name in ("x-lora", "task-moe", "multitask", "average-activation"):
        assert "no adapter is named after a task" in left_out[name]


def test_wrong_rows_are_the_evaluations_errors() -> None:
    with pytest.raises((InputError, UsageError)):
        compare(base_model(), bank(), ["arrow"], TASKS, rows=0)
