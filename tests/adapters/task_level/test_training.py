"""Task-level mixtures: what each stage trains, and how routing moves from average to learnt."""

from __future__ import annotations

import pytest
import torch

from crossroads.adapters.claims.skill_bed import TARGETS, ShiftTasks, base_model
from crossroads.adapters.contract import Call
from crossroads.adapters.routers.task_moe import TaskMoE
from crossroads.adapters.routes import route_table
from crossroads.adapters.skills import factors, new_skills
from crossroads.adapters.task_level.training import (
    Rates,
    second_stage,
    settled,
    train_tasks,
    two_stages,
)
from crossroads.adapters.training import TrainSettings
from tests.adapters import toys
from tests.adapters.test_skills import skills_of, tiny_task

STEPS = TrainSettings(steps=6)


def prepared(**settings: object) -> TaskMoE:
    made = TaskMoE(**{"tasks": 2, "width": 8, "hidden": 8, **settings})  # type: ignore[arg-type]
    made.prepare(skills_of(toys.tiny_llama()))
    return made


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_routes_stay_while_experts_learn(frozen: bool) -> None:
    model, router = toys.tiny_llama(), prepared()
    bank = skills_of(model)
    before = [p.detach().clone() for p in router.parameters()]
    experts = [p.detach().clone() for p in factors(bank)]
    train_tasks(model, bank, router, tiny_task(), STEPS, frozen_routes=frozen)
    stayed = [torch.equal(p, was) for p, was in zip(router.parameters(), before, strict=True)]
    assert all(stayed) if frozen else not any(stayed)
    assert not all(torch.equal(p, was) for p, was in zip(factors(bank), experts, strict=True))
    assert not any(p.requires_grad for p in (*router.parameters(), *bank.parameters()))


def test_each_group_moves_at_its_own_rate() -> None:
    model, router = toys.tiny_llama(), prepared()
    before = router.vectors_TD.detach().clone()
    assert router.network is not None
    into = router.network.into.weight.detach().clone()
    settings = TrainSettings(steps=1, warmup=0, decay="constant")
    rates = Rates(experts=1e-4, network=1e-3, vectors=1e-2)
    train_tasks(model, skills_of(model), router, tiny_task(), settings, rates=rates)
    # Adam's first step is as long as the rate, wherever there is a gradient.
    assert (router.vectors_TD - before).abs().max() <= 1.01e-2
    assert (router.network.into.weight - into).abs().max() <= 1.01e-3


def test_the_second_stage_begins_with_the_average_and_ends_with_the_learnt_routes() -> None:
    first = prepared()
    first.set_vectors(20 * first.vectors_TD)
    again = second_stage(first, steps=1000)
    call = Call(task_ids_B=torch.tensor([0, 1]))
    assert torch.equal(again.logits(call), first.logits(call))
    assert (again.temperature(0), again.temperature(1000)) == (300.0, 1.0)
    assert again.temperature(900) > 1.0  # the paper's run reaches its floor near its end
    table = route_table(first, skills_of(toys.tiny_llama()), ["a", "b"])
    again.reached.fill_(0)
    hot = route_table(again, skills_of(toys.tiny_llama()), ["a", "b"])
    again.reached.fill_(1000)
    cold = route_table(again, skills_of(toys.tiny_llama()), ["a", "b"])
    assert abs(hot.weights_TLE - 1 / 3).max() < 0.02
    assert (cold.weights_TLE.argmax(-1) == table.weights_TLE.argmax(-1)).all()
    assert abs(cold.weights_TLE - 1 / 3).max() > abs(hot.weights_TLE - 1 / 3).max()


def test_a_settled_router_stays_at_the_temperature_it_reached() -> None:
    router = second_stage(prepared(), steps=100)
    router.reached.fill_(50)
    kept = settled(router)
    assert kept.temperature(0) == kept.temperature(999) == router.temperature(50) > 1
    call = Call(task_ids_B=torch.tensor([0, 1]))
    assert torch.equal(kept.logits(call), router.logits(call))


def test_two_stages_start_their_experts_anew_and_leave_the_given_ones() -> None:
    model, router = toys.tiny_llama(), prepared()
    bank = skills_of(model)
    start = [p.detach().clone() for p in factors(bank)]
    experts, again = two_stages(model, bank, router, tiny_task(), first=STEPS, second=STEPS)
    assert all(torch.equal(p, was) for p, was in zip(factors(bank), start, strict=True))
    alone = skills_of(model)
    repeated = second_stage(router, steps=STEPS.steps)
    train_tasks(model, alone, repeated, tiny_task(), STEPS, frozen_routes=True)
    assert all(torch.equal(a, b) for a, b in zip(factors(experts), factors(alone), strict=True))
    assert torch.equal(again.vectors_TD, router.vectors_TD)


def test_tasks_of_a_family_come_to_route_alike() -> None:
    shifts = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 6], [5, 7, 2, 1], [5, 7, 2, 3]])
    tasks, model = ShiftTasks(shift_TK=shifts), base_model(0)
    gaps = []
    for seed in (0, 1):
        bank = new_skills(model, targets=TARGETS, skills=2, rank=4, seed=seed)
        router = TaskMoE(tasks=4, rate=0.1, seed=seed)
        train_tasks(
            model,
            bank,
            router,
            tasks.training(16, seed),
            TrainSettings(steps=80, seed=seed),
            rates=Rates(experts=1e-2, network=1e-2, vectors=1e-2),
        )
        table = route_table(router, bank, ["a1", "a2", "b1", "b2"])
        gaps.append(table.families(["a", "a", "b", "b"]).gap)
    assert sum(gaps) / 2 > 0
