from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from crossroads.adapters.collection import arms
from crossroads.adapters.collection.arms import (
    arm_name,
    facts_of,
    mean_nll,
    measure,
    share_closed,
)
from crossroads.adapters.collection.evaluation import TaskScore, evaluate
from crossroads.adapters.collection.tasks import task_names
from crossroads.adapters.contract import Router
from crossroads.adapters.routers.named import Named
from crossroads.adapters.routers.oracle import Oracle
from crossroads.adapters.routers.phatgoose import Phatgoose
from crossroads.adapters.routers.uniform import Uniform
from crossroads.core.errors import InputError
from tests.adapters.collection.toys import task, tokenizer
from tests.adapters.toys import bank_for, tiny_llama

TASKS = [task("e1"), task("nobody")]
ROWS = list(TASKS[0].rows["test"][:2])


class Greedy(Router):
    name: ClassVar[str] = "greedy"
    call_data: ClassVar[frozenset[str]] = frozenset(
        {"experts", "labels_B", "task_ids_B", "embedding_BG"}
    )


def _scores(arm: str, *losses: float, seed: int = 0) -> list[TaskScore]:
    return [
        TaskScore(
            arm=arm, task=f"t{n}", seed=seed, nll=loss, accuracy=None, accuracy_by_mean=None,
            rows=1, tokens=1,
        )
        for n, loss in enumerate(losses)
    ]  # fmt: skip


def test_a_router_is_told_what_it_asks_for_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arms, "embed", lambda texts, encoder: torch.ones(len(texts), 4))
    bank = bank_for(tiny_llama())
    told = facts_of(Greedy(), bank, TASKS[0])(ROWS)
    assert told["experts"] == ["e1", "e1"]
    assert told["labels"].tolist() == [1, 1]
    assert told["embedding"].shape == (2, 4)
    other = facts_of(Greedy(), bank, TASKS[1])(ROWS)
    assert other["experts"] == [None, None] and other["labels"].tolist() == [-1, -1]
    assert facts_of(Uniform(), bank, TASKS[0])(ROWS) == {}


def test_only_tasks_that_are_trained_on_have_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arms, "embed", lambda texts, encoder: torch.ones(len(texts), 4))
    bank, trained = bank_for(tiny_llama()), task_names(held_in=True)
    unseen = task_names(held_in=False)
    told = {
        name: facts_of(Greedy(), bank, task(name))(ROWS)["task_ids"].tolist()
        for name in (*trained, *unseen)
    }
    assert [told[name] for name in trained] == [[n, n] for n in range(len(trained))]
    assert [told[name] for name in unseen] == [[-1, -1]] * len(unseen)


def test_the_own_expert_is_the_same_by_name_and_by_label() -> None:
    model = tiny_llama()
    bank = bank_for(model)

    def run(router: Router) -> list[float]:
        found = measure(model, tokenizer(), bank, router, TASKS, rows=8, seeds=(0,))
        return [score.nll for score in found]

    by_name, by_label = run(Named()), run(Oracle())
    assert by_name == pytest.approx(by_label, abs=1e-5)
    plain = evaluate(model, tokenizer(), TASKS, arm="base", rows=8, seeds=(0,))
    assert by_name[1] == pytest.approx(plain[1].nll, abs=1e-5)  # no expert of its own
    assert abs(by_name[0] - plain[0].nll) > 1e-3


def test_an_arms_name_changes_with_all_that_changes_its_figures() -> None:
    model = tiny_llama()
    bank = bank_for(model)
    names = {arm_name(Phatgoose(), bank), arm_name(Phatgoose(k=1), bank), arm_name(Uniform(), bank)}
    names.add(arm_name(Phatgoose(), bank.subset(["e0", "e1"])))
    changed = bank_for(model)
    layer = next(iter(changed.layers))
    changed.layers[layer].artifacts.gate[0, 0] += 1
    names.add(arm_name(Phatgoose(), changed))
    described = bank_for(model)
    described.describe("e0", embedding_G=torch.ones(3))
    names.add(arm_name(Phatgoose(), described))
    assert len(names) == 6
    assert arm_name(Phatgoose(), bank_for(model)) == arm_name(Phatgoose(), bank)


def test_side_data_change_the_names_of_those_who_read_them() -> None:
    model = tiny_llama()
    bank, gated = bank_for(model), bank_for(model)
    for module in gated.layers.values():
        module.artifacts.gate += 1
    assert arm_name(Uniform(), gated) == arm_name(Uniform(), bank)
    assert arm_name(Phatgoose(), gated) != arm_name(Phatgoose(), bank)


def test_every_task_counts_the_same_whatever_its_tokens() -> None:
    long = replace(_scores("a", 4.0)[0], task="long", tokens=1000)
    assert mean_nll([*_scores("a", 2.0), long]) == {0: 3.0}


finite = st.floats(0, 10)


@given(finite, finite, finite)
def test_the_worse_arm_closes_nothing_and_the_better_all(a: float, b: float, c: float) -> None:
    assume(abs(a - b) > 1e-3)
    worse, better = _scores("w", max(a, b)), _scores("b", min(a, b))
    assert share_closed(worse, worse=worse, better=better) == {0: 0}
    assert share_closed(better, worse=worse, better=better) == {0: 1}
    found = share_closed(_scores("x", c), worse=worse, better=better)[0]
    assert min(a, b) * found + max(a, b) * (1 - found) == pytest.approx(c)


def test_arms_of_other_rows_or_without_a_gap_are_refused() -> None:
    two, three = _scores("a", 1.0, 2.0), _scores("b", 1.0, 2.0, 3.0)
    with pytest.raises(InputError, match="different tasks or seeds"):
        share_closed(two, worse=three, better=two)
    with pytest.raises(InputError, match="no gap to close"):
        share_closed(two, worse=two, better=two)
