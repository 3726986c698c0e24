"""Poly and multi-head routing: the algebra of mixing factors by task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.adapters.bank import AdapterBank, Expert, LoRA
from crossroads.adapters.calls import calling
from crossroads.adapters.combine import combine
from crossroads.adapters.contract import Call, RouteInput
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.layout import (
    export_expert,
    load_bank,
    load_router,
    merged_by_router,
    save_bank,
)
from crossroads.adapters.routers.poly import Poly
from crossroads.core.errors import InputError, UsageError
from tests.adapters import toys
from tests.adapters.layout.tiny import base, load_with_peft, logits

LAYER, INPUTS, OUTPUTS, RANK, SKILLS = "layers.0.proj", 8, 16, 3, 4
Tensor = torch.Tensor


def bank(heads: int = 1, *, same: bool = False, seed: int = 0) -> AdapterBank:
    draw = torch.Generator().manual_seed(seed)
    made = [
        LoRA(
            a_RI=torch.randn(RANK, INPUTS, generator=draw),
            b_OR=torch.randn(OUTPUTS, RANK, generator=draw),
            scale=1 / RANK,
        )
        for _ in range(SKILLS)
    ]
    return AdapterBank(
        [Expert(name=f"s{e}", modules={LAYER: made[0 if same else e]}) for e in range(SKILLS)],
        heads=heads,
    )


def router(skills: AdapterBank, logits_THE: Tensor | None = None, **given_settings: object) -> Poly:
    made = Poly(**{"tasks": 1 if logits_THE is None else len(logits_THE), **given_settings})  # type: ignore[arg-type]
    made.prepare(skills)
    if logits_THE is not None:
        made.logits[0].data = logits_THE
    return made


def added(skills: AdapterBank, poly: Poly, x_BTI: Tensor, tasks: list[int]) -> Tensor:
    call = Call(task_ids_B=torch.tensor(tasks))
    module = skills.layers[LAYER]
    given_input = RouteInput(module=LAYER, x_BTI=x_BTI, bank=module, call=call)
    return combine(x_BTI, module, poly.route(given_input))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_definition(skills: AdapterBank, weights_HE: Tensor, x_TI: Tensor) -> Tensor:
    """Return the merged adapter's output from the paper's blocks, head by head."""
    module, heads = skills.layers[LAYER], len(weights_HE)
    a_IR = torch.cat([
        sum(weights_HE[q, e] * module.a_ERI[e].T[q * INPUTS // heads : (q + 1) * INPUTS // heads]
            for e in range(SKILLS)) for q in range(heads)
    ])  # fmt: skip
    wide = OUTPUTS // heads
    b_RO = torch.cat([
        sum(weights_HE[q, e] * module.b_EOR[e].T[:, q * wide : (q + 1) * wide]
            for e in range(SKILLS)) for q in range(heads)
    ], 1)  # fmt: skip
    return x_TI @ a_IR @ b_RO / RANK


@given(heads=st.sampled_from([1, 2, 4, 8]), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=20)
def test_every_sequence_uses_its_tasks_mixture_of_blocks(heads: int, seed: int) -> None:
    skills, logits_THE = bank(heads, seed=seed), drawn(seed + 1, 3, heads, SKILLS)
    poly, x_BTI = router(skills, logits_THE), drawn(seed + 2, 2, 5, INPUTS)
    found = added(skills, poly, x_BTI, [2, 0])
    gates_THE = torch.sigmoid(logits_THE)
    weights_THE = gates_THE / gates_THE.sum(-1, keepdim=True)
    for row, task in enumerate([2, 0]):
        wanted = by_definition(skills, weights_THE[task], x_BTI[row])
        torch.testing.assert_close(found[row], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("heads", [1, 4])
def test_a_one_hot_task_is_that_skills_lora(heads: int) -> None:
    skills = bank(heads)
    logits_THE = torch.full((1, heads, SKILLS), -20.0)
    logits_THE[..., 2] = 20.0
    x_BTI = drawn(3, 1, 5, INPUTS)
    lora = skills.layers[LAYER].lora(2)
    assert lora is not None
    found = added(skills, router(skills, logits_THE), x_BTI, [0])
    torch.testing.assert_close(found, x_BTI @ lora.delta_OI().T, atol=1e-4, rtol=1e-4)


def test_an_unknown_task_and_the_uniform_variant_average_the_factors() -> None:
    skills = bank(2)
    poly = router(skills, drawn(1, 1, 2, SKILLS))
    x_BTI = drawn(4, 1, 3, INPUTS)
    wanted = by_definition(skills, torch.full((2, SKILLS), 1 / SKILLS), x_BTI[0])
    torch.testing.assert_close(added(skills, poly, x_BTI, [-1])[0], wanted, atol=1e-5, rtol=1e-4)
    uniform = router(skills, drawn(1, 1, 2, SKILLS), uniform=True)
    torch.testing.assert_close(added(skills, uniform, x_BTI, [0])[0], wanted, atol=1e-5, rtol=1e-4)


def test_with_all_skills_alike_any_routing_is_that_skill() -> None:
    skills, x_BTI = bank(2, same=True), drawn(5, 1, 3, INPUTS)
    lora = skills.layers[LAYER].lora(0)
    assert lora is not None
    found = added(skills, router(skills, drawn(6, 1, 2, SKILLS)), x_BTI, [0])
    torch.testing.assert_close(found, x_BTI @ lora.delta_OI().T, atol=1e-4, rtol=1e-4)


def test_a_head_touches_its_own_slices_alone() -> None:
    heads, head = 4, 2
    skills, logits_THE = bank(heads), drawn(7, 1, 4, SKILLS)
    moved_THE = logits_THE.clone()
    moved_THE[0, head, 0] += 3.0
    ins, outs = INPUTS // heads, OUTPUTS // heads
    x_BTI = drawn(8, 1, 3, INPUTS)
    x_BTI[..., head * ins : (head + 1) * ins] = 0.0  # its slice of the inputs says nothing
    before = added(skills, router(skills, logits_THE), x_BTI, [0])
    after = added(skills, router(skills, moved_THE), x_BTI, [0])
    changed_O = (before - after).abs().amax((0, 1)) > 1e-6
    wanted_O = torch.zeros(OUTPUTS, dtype=torch.bool)
    wanted_O[head * outs : (head + 1) * outs] = True
    assert torch.equal(changed_O, wanted_O)


def test_logits_start_small_and_the_same_from_the_seed() -> None:
    skills = bank(2)
    first, again = router(skills, tasks=5), router(skills, tasks=5)
    assert first.logits[0].shape == (5, 2, SKILLS)
    assert 0 < first.logits[0].abs().max() <= 1e-3
    assert torch.equal(first.logits[0], again.logits[0])


def test_preparing_again_keeps_what_was_trained() -> None:
    skills = bank()
    poly = router(skills, drawn(1, 1, 1, SKILLS))
    kept = poly.logits[0]
    poly.prepare(skills)
    assert poly.logits[0] is kept


def test_skills_that_stay_keep_their_logits_when_others_come_and_go() -> None:
    skills = bank()
    poly = router(skills, drawn(1, 2, 1, SKILLS))
    before_THE = poly.logits[0].detach().clone()
    skills.remove("s1")
    factors = skills.layers[LAYER].lora(0)
    assert factors is not None
    skills.add(Expert(name="new", modules={LAYER: factors}))
    poly.prepare(skills)
    assert torch.equal(poly.logits[0][..., :3], before_THE[..., [0, 2, 3]])
    assert poly.logits[0][..., 3].abs().max() <= 1e-3


@pytest.mark.parametrize("is_trained", [True, False])
def test_logits_in_training_stay_in_it_when_the_bank_changes(is_trained: bool) -> None:
    skills = bank()
    poly = router(skills)
    poly.logits[0].requires_grad_(is_trained)
    factors = skills.layers[LAYER].lora(0)
    assert factors is not None
    skills.add(Expert(name="new", modules={LAYER: factors}))
    poly.prepare(skills)
    assert poly.logits[0].shape[-1] == SKILLS + 1
    assert poly.logits[0].requires_grad is is_trained


def test_other_heads_start_anew() -> None:
    poly = router(bank(), drawn(1, 1, 1, SKILLS))
    poly.prepare(bank(2))
    assert poly.logits[0].shape == (1, 2, SKILLS)
    assert poly.logits[0].abs().max() <= 1e-3


def test_the_coarse_grain_has_one_set_of_logits_for_the_model() -> None:
    one = LoRA(a_RI=torch.ones(1, 4), b_OR=torch.ones(4, 1), scale=1.0)
    names = [f"layers.{n}.proj" for n in range(3)]
    skills = AdapterBank([Expert(name=c, modules=dict.fromkeys(names, one)) for c in "ab"])
    assert len(router(skills, grain="coarse").logits) == 1
    assert len(router(skills).logits) == 3


def test_relaxed_gates_are_noisy_in_training_alone_and_a_function_of_the_step() -> None:
    skills = bank()
    poly, module = router(skills, relaxed=True), skills.layers[LAYER]

    def weights(training: bool, step: int) -> Tensor:
        call = Call(task_ids_B=torch.tensor([0]), training=training, step=step)
        x_BTI = torch.zeros(1, 1, INPUTS)
        return poly.route(RouteInput(module=LAYER, x_BTI=x_BTI, bank=module, call=call)).weights

    assert torch.equal(weights(True, 1), weights(True, 1))
    assert not torch.equal(weights(True, 1), weights(True, 2))
    assert (weights(False, 1) - 1 / SKILLS).abs().max() < 1e-3


def test_wrong_settings_and_tasks_are_refused() -> None:
    skills = bank()
    with pytest.raises(UsageError, match="grain is fine or coarse"):
        Poly(grain="medium")
    with pytest.raises(UsageError, match="at least 1"):
        Poly(tasks=0)
    for task in (1, -2):
        with pytest.raises(InputError, match="task ids go from 0 to 0"):
            added(skills, router(skills), torch.zeros(1, 1, INPUTS), [task])
    with pytest.raises(InputError, match="legal are 1, 2, 4, 8"):
        bank(3)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_batch_of_several_tasks_is_each_task_alone(heads: int) -> None:
    model = toys.tiny_llama()
    skills = AdapterBank(toys.experts(model, ["a", "b", "c"]), heads=heads)
    poly = router(skills, tasks=4)
    for place, z in enumerate(poly.logits):
        z.data = drawn(place, *z.shape) * 2
    routed = RoutedModel(model, skills, poly)
    ids_BT, tasks = toys.ids(3, 5), torch.tensor([3, -1, 0])
    with torch.no_grad(), calling(task_ids=tasks):
        together = routed.model(ids_BT).logits
    for row, task in enumerate(tasks):
        with torch.no_grad(), calling(task_ids=task[None]):
            alone = routed.model(ids_BT[row : row + 1]).logits
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("heads", [1, 4])
def test_a_task_exported_as_one_lora_gives_peft_the_same_logits(heads: int, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = base()
    skills = AdapterBank(toys.experts(model, ["a", "b"], scale=1 / 2), heads=heads)
    poly = router(skills, tasks=2)
    for place, z in enumerate(poly.logits):
        z.data = drawn(place, *z.shape) * 2
    call = Call(task_ids_B=torch.tensor([1]))
    export_expert(merged_by_router(skills, poly, call=call), tmp_path, task_type="CAUSAL_LM")
    routed = RoutedModel(model, skills, poly)
    with calling(task_ids=torch.tensor([1])):
        wanted = logits(routed.model)
    assert (wanted - logits(base())).abs().max() > 1e-2
    torch.testing.assert_close(load_with_peft(tmp_path), wanted, atol=1e-4, rtol=1e-4)


def test_a_saved_router_decides_the_same(tmp_path: Path) -> None:
    skills = bank(2)
    poly = router(skills, drawn(3, 2, 2, SKILLS))
    save_bank(tmp_path / "bank", skills, poly)
    again = load_bank(tmp_path / "bank")
    found, x_BTI = load_router(tmp_path / "bank", again), drawn(4, 1, 3, INPUTS)
    assert isinstance(found, Poly)
    assert torch.equal(added(again, found, x_BTI, [1]), added(skills, poly, x_BTI, [1]))


def test_gates_that_are_all_shut_give_weights_that_are_finite() -> None:
    skills = bank()
    x_BTI = drawn(4, 1, 3, INPUTS)
    found = added(skills, router(skills, torch.full((1, 1, SKILLS), -200.0)), x_BTI, [0])
    assert torch.isfinite(found).all()


def test_a_renamed_skill_keeps_its_logits() -> None:
    skills = bank()
    poly = router(skills, drawn(1, 2, 1, SKILLS))
    before_THE = poly.logits[0].detach().clone()
    skills.rename("s1", "other")
    poly.prepare(skills)
    assert torch.equal(poly.logits[0], before_THE)
