"""Skills: how they start, how they are trained, how a new task gets its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.calls import calling
from crossroads.adapters.claims.skill_bed import TARGETS, ShiftTasks, base_model
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.layout import read_poly
from crossroads.adapters.routers.poly import Poly
from crossroads.adapters.skills import (
    adapt,
    factors,
    groups,
    head_entropy,
    mean_skill,
    new_skills,
    poly_with,
    train_skills,
)
from crossroads.adapters.texts import TextBatch, answer_nll
from crossroads.adapters.training import TrainSettings
from crossroads.core.errors import InputError, UsageError
from tests.adapters import toys
from tests.adapters.layout.test_mixtures import TASKS, save_poly
from tests.adapters.layout.tiny import base, inputs

SEEN = ShiftTasks.of_skills([[0], [1], [2], [3], [0, 1], [2, 3]])
NEW = ShiftTasks.of_skills([[0, 3]], first=6)
Tensor = torch.Tensor


def skills_of(model: torch.nn.Module, heads: int = 1, **more: object) -> AdapterBank:
    return new_skills(
        model, **{"targets": ["q_proj", "up_proj"], "skills": 3, "rank": 2, "heads": heads, **more}
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(("start", "bound"), [("kaiming", 0.5), ("gain", 0.14434)])
def test_skills_start_within_bounds_and_change_nothing(start: str, bound: float) -> None:
    model = toys.tiny_llama()
    bank = skills_of(model, heads=4, start=start, rank=8)
    for module in bank.layers.values():  # 16 inputs, 4 heads
        assert 0.9 * bound < module.a_ERI.abs().max() <= bound
        assert not module.b_EOR.any()
        assert module.scale_E.tolist() == [1 / 8] * 3
        assert not torch.equal(module.a_ERI[0], module.a_ERI[1])
    before = model(toys.ids(2, 4)).logits
    routed = RoutedModel(model, bank, Poly(tasks=2))
    with calling(task_ids=torch.tensor([0, 1])):
        assert torch.equal(routed.model(toys.ids(2, 4)).logits, before)


def test_the_same_seed_draws_the_same_skills() -> None:
    model = toys.tiny_llama()
    one, same, other = (skills_of(model, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(factors(one), factors(same), factors(other), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c) == (not a.any())  # B is zero whatever the seed


def test_what_cannot_be_made_is_refused() -> None:
    model = toys.tiny_llama()
    with pytest.raises(InputError, match="no linear layer is named nothing"):
        skills_of(model, targets=["nothing"])
    with pytest.raises(InputError, match="heads: 5 does not divide the 16 inputs"):
        skills_of(model, heads=5)
    with pytest.raises(UsageError, match="kaiming"):
        skills_of(model, start="kaimin")
    with pytest.raises(UsageError, match="variant"):
        adapt(model, skills_of(model), NEW.few(1, 2, 0), TrainSettings(steps=1), variant="zz")  # type: ignore[arg-type]


def tiny_task(rows: int = 4) -> Callable[[int], TextBatch]:
    def batch_of(step: int) -> TextBatch:
        ids_BT = toys.ids(rows, 6, seed=step)
        answer_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        answer_BT[:, 3:] = True
        return TextBatch(
            ids_BT=ids_BT,
            mask_BT=torch.ones_like(answer_BT),
            answer_BT=answer_BT,
            task_ids_B=torch.arange(rows) % 2,
        )

    return batch_of


@pytest.mark.parametrize("rate", [1e-3, 0.1])
def test_routing_leaves_its_start_at_a_rate_of_its_own_alone(rate: float) -> None:
    model = toys.tiny_llama()
    bank, router = skills_of(model, heads=2), Poly(tasks=2)
    train_skills(model, bank, router, tiny_task(), TrainSettings(steps=30), lr=1e-3, logit_lr=rate)
    gates = torch.cat([torch.sigmoid(z).flatten(0, 1) for z in router.logits])
    apart = float((gates / gates.sum(-1, keepdim=True) - 1 / 3).abs().mean())
    if rate == 1e-3:
        assert apart < 0.02
        assert head_entropy(router, bank) > 0.999
    else:
        assert apart > 0.02
        assert head_entropy(router, bank) < 0.999


def test_groups_hold_every_number_once_and_equal_weights_leave_the_logits_out() -> None:
    bank = skills_of(toys.tiny_llama())
    router, equal = Poly(tasks=2), Poly(uniform=True)
    for made in (router, equal):
        made.prepare(bank)
    both = groups(bank, router, lr=1e-3, logit_lr=0.1)
    assert [group.lr for group in both] == [1e-3, 0.1]
    assert {id(p) for g in both for p in g.parameters} == {
        id(p) for p in (*bank.parameters(), *router.parameters())
    }
    assert len(groups(bank, equal)) == 1


def test_each_variant_trains_what_it_says_and_leaves_the_bank_alone() -> None:
    model = toys.tiny_llama()
    bank = skills_of(model, heads=2)
    for b_EOR in (module.b_EOR for module in bank.layers.values()):
        b_EOR.data.normal_(generator=toys.rng(3))
    before = [p.detach().clone() for p in factors(bank)]
    sizes = [(m.inputs, m.outputs) for m in bank.layers.values()]
    expected = {
        "full": sum(3 * 2 * (i + o) + 2 * 3 for i, o in sizes),
        "z": len(sizes) * 2 * 3,
        "mu": sum(2 * (i + o) for i, o in sizes),
    }
    for variant, count in expected.items():
        found = adapt(model, bank, tiny_task(), TrainSettings(steps=2), variant=variant, lr=1e-2)  # type: ignore[arg-type]
        assert found.n_trained == count
        assert all(torch.equal(p, was) for p, was in zip(factors(bank), before, strict=True))
        moved = any(
            not torch.equal(p, was)
            for p, was in zip(factors(found.bank), before, strict=True)
            if p.shape == was.shape
        )
        assert moved == (variant == "full")
        assert not any(p.requires_grad for p in (*found.bank.parameters(), *model.parameters()))


def test_the_mean_skill_is_equal_weights_and_trains_along_the_same_path_as_the_bank() -> None:
    model = toys.tiny_llama()
    bank = skills_of(model, heads=2)
    for module in bank.layers.values():
        module.b_EOR.data.normal_(generator=toys.rng(3))
    settings = TrainSettings(steps=3, eps=1e-16, clip=None)
    mean = adapt(model, bank, tiny_task(), settings, variant="mu", lr=1e-2)
    together = train_skills(
        model, bank, Poly(tasks=2, uniform=True), tiny_task(), settings, lr=1e-2
    )
    assert together == pytest.approx(mean.losses, rel=1e-4)
    for found, module in zip(mean.bank.layers.values(), bank.layers.values(), strict=True):
        torch.testing.assert_close(found.a_ERI[0], module.a_ERI.mean(0), atol=1e-4, rtol=1e-3)


def test_experts_of_several_ranks_have_no_mean_skill() -> None:
    model = toys.tiny_llama()
    small, large = toys.experts(model, ["a"], rank=1)[0], toys.experts(model, ["b"], rank=2)[0]
    with pytest.raises(InputError, match="differ in rank or scale"):
        mean_skill(AdapterBank([small, large]))


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    def run(steps: list[int], checkpoint: Path | None) -> AdapterBank:
        model = toys.tiny_llama()
        bank, file = skills_of(model), checkpoint

        def batch_of(step: int) -> TextBatch:
            if steps and step == steps[0]:
                raise KeyboardInterrupt
            return tiny_task()(step)

        router = Poly(tasks=2)
        train_skills(
            model, bank, router, batch_of, TrainSettings(steps=36), lr=1e-2, checkpoint=file
        )
        return bank

    whole = run([], None)
    with pytest.raises(KeyboardInterrupt):
        run([33], tmp_path / "state")
    resumed = run([], tmp_path / "state")
    assert all(torch.equal(a, b) for a, b in zip(factors(whole), factors(resumed), strict=True))


def test_an_imported_poly_adapter_computes_what_peft_does(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    expected = save_poly(tmp_path, n_splits=2)
    mixture = read_poly(tmp_path)
    routed = RoutedModel(base(), mixture.bank, poly_with(mixture.bank, mixture.gates))
    with torch.no_grad(), calling(task_ids=TASKS):
        found = routed.model(**inputs()).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_logits_of_other_sizes_are_refused() -> None:
    bank = skills_of(toys.tiny_llama())
    with pytest.raises(InputError, match="for every layer of the bank"):
        poly_with(bank, {})
    with pytest.raises(InputError, match=r"expected shape \(2, 1, 3\), got \(2, 1, 4\)"):
        poly_with(bank, {layer: torch.zeros(2, 1, 4) for layer in bank.layers})


def nll(model: torch.nn.Module, bank: AdapterBank, router: Poly, batch: TextBatch) -> float:
    routed = RoutedModel(model, bank, router)
    try:
        with torch.no_grad(), calling(task_ids=batch.task_ids_B):
            return float(answer_nll(routed.model, batch).mean())
    finally:
        routed.unwrap()


def test_skills_by_task_learn_more_than_one_adapter_of_their_size() -> None:
    model, last = base_model(0), {}
    for name, skills, rank, heads in (("shared", 1, 8, 1), ("poly", 4, 2, 1), ("mhr", 4, 2, 8)):
        bank = new_skills(model, targets=TARGETS, skills=skills, rank=rank, heads=heads)
        router = Poly(tasks=len(SEEN), uniform=skills == 1)
        losses = train_skills(
            model, bank, router, SEEN.training(16, 0), TrainSettings(steps=60), lr=1e-2
        )
        last[name] = sum(losses[-10:]) / 10
    assert last["poly"] < last["shared"]
    assert last["mhr"] < last["shared"]
