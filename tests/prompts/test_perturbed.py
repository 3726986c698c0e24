"""Robustness in the arena: who keeps its choice when the words change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crossroads.prompts import tasks
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.perturbed import PerturbedPrompts, perturb_prompts
from crossroads.prompts.tasks import PromptTask, prompt_task
from tests.prompts.toy_routers import build_toy, make_table, random_table


def with_texts(n: int = 60) -> OutcomeTable:
    words = ("What is the answer to question", "Choose the correct statement about", "Solve for")
    texts = [f"{words[i % 3]} {i} of the list? Give the letter." for i in range(n)]
    texts[0] = ""
    table = random_table(n=n)
    assert isinstance(table, OutcomeTable)
    return replace(table, texts=np.array(texts, dtype=object), embeddings={})


def test_as_many_prompts_as_asked_for_and_none_without_text() -> None:
    table = with_texts()
    found = perturb_prompts(table, "static", 1000)
    assert found is not None
    assert len(found) == 59
    assert 0 not in found.rows
    assert table.texts is not None
    assert all(new != table.texts[row] for new, row in zip(found.texts, found.rows, strict=True))
    few = perturb_prompts(table, "static", 10)
    assert few is not None
    assert len(few) == 10
    assert set(few.rows) <= set(found.rows)


@pytest.mark.parametrize("num", [0, 10])
def test_nothing_to_perturb_leaves_robustness_out(num: int) -> None:
    table = make_table([[0, 1]] * 4)
    assert perturb_prompts(table, "static", num) is None
    names = {metric.name for metric in PromptTask(table=table).metrics}
    assert "robustness" not in names


def test_a_constant_choice_is_robust_and_a_random_one_is_not() -> None:
    task = prompt_task(with_texts(600), num_perturbed=400)
    assert "robustness" in {metric.name for metric in task.metrics}
    assert any("400 prompts perturbed by rules" in note for note in task.notes)
    robust = {name: task.run(name, 0).metrics["robustness"] for name in ("best-single", "random")}
    assert robust["best-single"] == 1
    assert robust["random"] < 0.6  # about a third among three models
    assert np.isnan(task.run("oracle", 0).metrics["robustness"])


def test_a_choice_by_the_changed_embedding_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "build_router", build_toy)
    task = PromptTask(table=random_table(n=50))
    split = task.split_of(0)
    router = build_toy("last").fit(split.training)
    changed = PerturbedPrompts(
        rows=split.rows[:4],
        texts=np.array(["x"] * 4, dtype=object),
        embeddings=np.zeros((4, 1), dtype=np.float32),
    )
    others = np.full(len(split.rows), 2)
    others[0] = 0
    assert changed.robustness(router, split, others) == pytest.approx(3 / 4)
    absent = replace(changed, rows=np.setdiff1d(np.arange(50), split.rows)[:4])
    assert np.isnan(absent.robustness(router, split, others))
