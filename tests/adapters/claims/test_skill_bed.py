"""The tasks of shifted symbols, and the model that copies."""

from __future__ import annotations

import torch

from crossroads.adapters.claims.skill_bed import (
    OF_A_KIND,
    SYMBOLS,
    ShiftTasks,
    accuracy,
    base_model,
)

TASKS = ShiftTasks.of_skills([[0], [1, 3]], first=4)


def test_a_sequence_names_its_task_and_rewrites_symbols_within_their_kind() -> None:
    batch = TASKS.batch(50, seed=1)
    assert batch.task_ids_B is not None
    assert torch.equal(batch.ids_BT[:, 0], SYMBOLS + 4 + batch.task_ids_B)
    x_BT, y_BT = batch.ids_BT[:, 1::2], batch.ids_BT[:, 2::2]
    assert torch.equal(x_BT // OF_A_KIND, y_BT // OF_A_KIND)
    moved = (y_BT - x_BT) % OF_A_KIND
    for task, skills in enumerate(([0], [1, 3])):
        mine = batch.task_ids_B == task
        has_skill = torch.isin(x_BT[mine] // OF_A_KIND, torch.tensor(skills))
        assert torch.equal(moved[mine], 3 * has_skill)
    assert batch.answer_BT[:, 2::2].all()
    assert batch.answer_BT.sum() == y_BT.numel()


def test_batches_are_functions_of_step_and_seed() -> None:
    training = TASKS.training(8, 3)
    assert torch.equal(training(5).ids_BT, TASKS.training(8, 3)(5).ids_BT)
    assert not torch.equal(training(5).ids_BT, training(6).ids_BT)
    few = TASKS.few(2, 8, 3)
    assert torch.equal(few(0).ids_BT, few(2).ids_BT)
    assert not torch.equal(few(0).ids_BT, few(1).ids_BT)
    assert not torch.equal(TASKS.test(8, 3).ids_BT, training(0).ids_BT)


def test_one_task_keeps_its_token() -> None:
    batch = TASKS.only(1).batch(4, seed=0)
    assert (batch.ids_BT[:, 0] == SYMBOLS + 5).all()


def test_the_base_model_copies_and_cannot_shift() -> None:
    model = base_model(0)
    copying = ShiftTasks(shift_TK=torch.zeros(1, 4, dtype=torch.long), first=9)
    shifting = ShiftTasks(shift_TK=torch.full((1, 4), 3), first=9)
    assert accuracy(model, copying.test(64, 0)) > 0.98
    assert accuracy(model, shifting.test(64, 0)) < 0.02
    assert not any(p.requires_grad for p in model.parameters())
