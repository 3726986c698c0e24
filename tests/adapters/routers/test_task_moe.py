"""Task-level mixture of experts: selections, controls, vectors, and batches of several tasks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.adapters.bank import AdapterBank, Expert, LoRA
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import Call, RouteInput, Routing
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.layout import load_bank, load_router, save_bank
from crossroads.adapters.routers import build_router
from crossroads.adapters.routers.task_moe import TaskMoE
from crossroads.core.errors import InputError, UsageError
from tests.adapters import toys

LAYERS = tuple(f"layers.{n}.{kind}_proj" for n in range(3) for kind in "qv")
EXPERTS = 4
FORMS = ("layer", "joint", "recurrent", "transformer")
LEARNT = ("straight-through", "gumbel", "softmax")
Tensor = torch.Tensor


def bank(names: str = "abcd") -> AdapterBank:
    return AdapterBank(
        [
            Expert(
                name=name,
                modules={
                    layer: toys.lora(2, 6, 4, seed=10 * e + n) for n, layer in enumerate(LAYERS)
                },
            )
            for e, name in enumerate(names)
        ]
    )


def prepared(experts: AdapterBank | None = None, **given_settings: object) -> TaskMoE:
    router = TaskMoE(**{"tasks": 5, "width": 8, "hidden": 8, **given_settings})  # type: ignore[arg-type]
    router.prepare(experts or bank())
    return router


def routed(router: TaskMoE, tasks: list[int], layer: str = LAYERS[0], **call: object) -> Routing:
    experts = router._bank[0]
    given_call = Call(task_ids_B=torch.tensor(tasks), **call)  # type: ignore[arg-type]
    return router.route(
        RouteInput(
            module=layer,
            x_BTI=torch.zeros(len(tasks), 3, 6),
            bank=experts.layers[layer],
            call=given_call,
        )
    )


def weights(router: TaskMoE, tasks: list[int], layer: str = LAYERS[0], **call: object) -> Tensor:
    return routed(router, tasks, layer, **call).dense(EXPERTS)[:, 0, 0]


@given(seed=st.integers(0, 1000), step=st.integers(0, 5000))
@settings(deadline=None, max_examples=25)
def test_straight_through_is_one_hot_forward_and_a_softmax_backward(seed: int, step: int) -> None:
    router = prepared()
    hard_BE = weights(router, [0, 3, 3], training=True, seed=seed, step=step)
    assert set(hard_BE.flatten().tolist()) <= {0.0, 1.0}
    assert torch.equal(hard_BE.sum(-1), torch.ones(3))
    router.vectors_TD.requires_grad_(True)
    towards = torch.randn(3, EXPERTS, generator=toys.rng(seed))
    found = {}
    for select in ("straight-through", "gumbel"):  # the soft sample of the same noise
        router.select = select
        loss = (weights(router, [0, 3, 3], training=True, seed=seed, step=step) * towards).sum()
        found[select] = torch.autograd.grad(loss, router.vectors_TD)[0]
    assert found["gumbel"].any()
    torch.testing.assert_close(found["straight-through"], found["gumbel"])


def test_noise_is_gumbels_so_that_choices_follow_the_softmax() -> None:
    router = prepared()
    logits_BLE = router.logits(Call(task_ids_B=torch.tensor([2])))
    wanted_E = torch.softmax(logits_BLE[0, 0], -1)  # whatever the temperature
    drawn_BE = weights(router, [2] * 20_000, training=True)
    torch.testing.assert_close(drawn_BE.mean(0), wanted_E, atol=0.015, rtol=0)


def test_the_temperature_falls_to_its_floor() -> None:
    router = TaskMoE()
    assert router.temperature(0) == 2.0
    assert router.temperature(1000) == pytest.approx(2.0 * math.exp(-0.3))
    assert router.temperature(50_000) == 0.1
    paper = TaskMoE(select="softmax", tau=300, rate=1e-4, floor=1)
    assert paper.temperature(0) == 300
    assert paper.temperature(60_000) == 1


def test_a_hot_softmax_is_the_average_and_a_cold_one_the_choice() -> None:
    hot = prepared(select="softmax", tau=1e6, rate=0.0)
    assert (weights(hot, [0, 1], training=True) - 1 / EXPERTS).abs().max() < 1e-5
    cold = prepared(select="softmax", tau=1e-4, rate=0.0, floor=1e-5)
    assert torch.equal(weights(cold, [0, 1], training=True), weights(prepared(), [0, 1]))


def test_evaluation_has_no_noise_and_takes_the_largest_logit() -> None:
    for select in ("straight-through", "gumbel"):
        router = prepared(select=select)
        best = router.logits(Call(task_ids_B=torch.tensor([0, 1, 4])))[:, 1].argmax(-1)
        found = routed(router, [0, 1, 4], LAYERS[2], seed=3)
        assert found.index is not None
        assert torch.equal(found.index[:, 0, 0, 0], best)
        assert torch.equal(weights(router, [0, 1, 4], LAYERS[2], seed=4), found.dense(4)[:, 0, 0])


def test_a_softmax_is_evaluated_at_the_temperature_training_has_reached() -> None:
    router = prepared(select="softmax", tau=2.0, rate=0.1, floor=0.5)
    last = weights(router, [0, 1], training=True, step=9)
    assert torch.equal(weights(router, [0, 1]), last)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_decides_for_each_block_by_the_task_alone(form: str) -> None:
    router = prepared(form=form, select="softmax", seed=1)
    assert router.blocks == ("layers.0", "layers.1", "layers.2")
    logits_BLE = router.logits(Call(task_ids_B=torch.tensor([4, 0, 4])))
    assert logits_BLE.shape == (3, 3, EXPERTS)
    torch.testing.assert_close(logits_BLE[0], logits_BLE[2])
    assert not torch.allclose(logits_BLE[0], logits_BLE[1])
    assert not torch.allclose(logits_BLE[0, 0], logits_BLE[0, 1])
    alone = router.logits(Call(task_ids_B=torch.tensor([0])))
    torch.testing.assert_close(alone[0], logits_BLE[1])
    again = prepared(form=form, seed=1).logits(Call(task_ids_B=torch.tensor([4, 0, 4])))
    assert torch.equal(again, logits_BLE)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_reaches_vectors_and_every_number_of_the_network(form: str) -> None:
    router = prepared(form=form)
    for parameter in router.parameters():
        parameter.requires_grad_(True)
    total = sum(
        (weights(router, [0, 1, 2, 3, 4], layer, training=True) * torch.arange(4.0)).sum()
        for layer in LAYERS[::2]
    )
    total.backward()  # type: ignore[union-attr]
    for name, parameter in router.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_controls_average_or_draw_once_a_task_or_once_a_sequence() -> None:
    tasks = [0, 1, 2, 3, 4] * 6
    assert (weights(prepared(select="average"), tasks) == 1 / EXPERTS).all()
    fixed = prepared(select="random")
    first = weights(fixed, tasks, training=True, step=1)
    assert torch.equal(first, weights(fixed, tasks, step=2, seed=9))
    assert torch.equal(first[:5], first[5:10])
    assert len(first[:5].unique(dim=0)) > 1
    each = prepared(select="random-sequence")
    drawn = weights(each, [0] * 200, step=1)
    assert torch.equal(drawn, weights(each, [0] * 200, step=1))
    assert not torch.equal(drawn, weights(each, [0] * 200, step=2))
    assert (drawn.mean(0) > 0.1).all()
    assert not each.is_static(Call())
    for found in (first, drawn):
        assert ((found == 1).sum(-1) == 1).all()


def test_exploration_replaces_its_share_of_the_choices() -> None:
    cold = {"tau": 1e-3, "rate": 0.0, "floor": 1e-4, "select": "softmax"}
    tasks = [0] * 4000
    usual = weights(prepared(**cold), tasks, training=True)
    moved = weights(prepared(explore=0.4, **cold), tasks, training=True)
    share = float((usual.argmax(-1) != moved.argmax(-1)).float().mean())
    assert share == pytest.approx(0.4 * (1 - 1 / EXPERTS), abs=0.04)
    assert torch.equal(weights(prepared(explore=0.4, **cold), tasks), usual)  # evaluated: none


def test_experts_that_do_not_adapt_a_block_are_never_chosen() -> None:
    experts = bank()
    partial = {layer: toys.lora(2, 6, 4) for layer in LAYERS[2:]}
    experts.remove("b")
    experts.add(Expert(name="b", modules=partial))  # at place 3, absent from block 0
    for select in (*LEARNT, "average", "random", "random-sequence"):
        router = prepared(experts, select=select)
        for training in (False, True):
            found = weights(router, [0, 1, 2, 3, 4] * 8, training=training)
            assert not found[:, 3].any(), select
            assert (found.sum(-1) - 1).abs().max() < 1e-6


def test_a_batch_of_several_tasks_is_each_task_alone() -> None:
    model = toys.tiny_llama()
    router = TaskMoE(tasks=4, width=8, hidden=8)
    router.set_vectors(20 * router.vectors_TD)  # far apart, for routes that differ
    put_in = RoutedModel(model, toys.bank_for(model, 3), router)
    put_in.checks = True
    ids_BT, tasks = toys.ids(4, 5), torch.tensor([3, 1, 0, 3])
    with torch.no_grad(), calling(task_ids=tasks):
        together = put_in.model(ids_BT).logits
    chosen = {}
    for row, task in enumerate(tasks):
        with torch.no_grad(), calling(task_ids=task[None]):
            alone = put_in.model(ids_BT[row : row + 1]).logits
        chosen[int(task)] = torch.stack(
            [r.dense(3)[0, 0, 0] for r in put_in.last_routings.values()]
        )
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-4)
    assert len(torch.stack(list(chosen.values())).unique(dim=0)) > 1


def test_average_routing_over_experts_that_change_nothing_is_the_base_model() -> None:
    model = toys.tiny_llama()
    before = model(toys.ids(2, 5)).logits
    experts = toys.experts(model, ["a", "b", "c"])
    for expert in experts:
        for lora in expert.modules.values():
            lora.b_OR.zero_()
    put_in = RoutedModel(model, AdapterBank(experts), TaskMoE(select="average"))
    with torch.no_grad(), calling(task_ids=torch.tensor([0, 0])):
        torch.testing.assert_close(put_in.model(toys.ids(2, 5)).logits, before)


def test_a_task_without_number_is_routed_by_the_embedding_it_is_given() -> None:
    router = prepared(select="softmax")
    embedding = router.vectors_TD.detach()[[2, 0, 1]]
    mixed = weights(router, [-1, 3, -1], embedding_BG=embedding)
    torch.testing.assert_close(mixed, weights(router, [2, 3, 1]))
    with pytest.raises(InputError, match="needs its vector of 8 numbers"):
        weights(router, [-1, 0])
    with pytest.raises(InputError, match="needs its vector of 8 numbers"):
        weights(router, [-1], embedding_BG=torch.zeros(1, 5))
    for task in (5, -2):
        with pytest.raises(InputError, match="task ids go from 0 to 4"):
            weights(router, [task])


def test_given_vectors_and_new_tasks_are_routed_like_any_other() -> None:
    router = prepared(select="softmax")
    router.set_vectors(torch.eye(2, 16))
    assert (router.tasks, router.width) == (2, 16)
    number = router.add_task(torch.eye(2, 16)[1])
    assert number == 2
    assert router.settings()["tasks"] == 3
    found = weights(router, [1, 2])
    assert torch.equal(found[0], found[1])
    with pytest.raises(InputError, match="expected a vector of 16 numbers"):
        router.add_task(torch.zeros(3))


def test_preparing_again_keeps_the_network_for_the_same_experts_alone() -> None:
    router, experts = prepared(), bank()
    before = router.network
    router.prepare(experts)
    assert router.network is before
    router.prepare(experts.subset(["a", "b"]))
    assert router.logits(Call(task_ids_B=torch.tensor([0]))).shape == (1, 3, 2)


def test_the_distance_of_experts_is_charged_and_zero_for_equal_ones() -> None:
    one = toys.lora(1, 2, 2, seed=1)
    other = LoRA(a_RI=one.a_RI + 3.0, b_OR=one.b_OR, scale=1.0)
    for second, wanted in ((one, 0.0), (other, 3.0 * 2**0.5)):
        experts = AdapterBank(
            [Expert(name="a", modules={"layers.0.q": one}),
             Expert(name="b", modules={"layers.0.q": second})]
        )  # fmt: skip
        term = prepared(experts, distance=0.5).losses({}, Call())["distance"]
        assert float(term.value) == pytest.approx(wanted, abs=1e-6)
        assert float(term.weighted) == pytest.approx(0.5 * wanted, abs=1e-6)
    assert not prepared(experts).losses({}, Call())


def test_the_distance_is_the_mean_over_pairs_of_experts() -> None:
    one = toys.lora(1, 2, 2, seed=1)
    found = [
        Expert(
            name=name,
            modules={"layers.0.q": LoRA(a_RI=one.a_RI + shift, b_OR=one.b_OR, scale=1.0)},
        )
        for name, shift in (("a", 0.0), ("b", 1.0), ("c", 3.0))
    ]
    term = prepared(AdapterBank(found), distance=0.5).losses({}, Call())["distance"]
    assert float(term.value) == pytest.approx((1 + 3 + 2) / 3 * 2**0.5)


def test_equal_experts_have_a_finite_gradient_of_their_distance() -> None:
    model = toys.tiny_llama()
    router = TaskMoE(distance=1.0)
    put_in = RoutedModel(model, toys.bank_for(model, 2), router)
    for module in put_in.bank.layers.values():
        module.a_ERI.data[1] = module.a_ERI.data[0]
        module.a_ERI.requires_grad_(True)
    router.losses({}, Call())["distance"].value.backward()
    gradients = [m.a_ERI.grad for m in put_in.bank.layers.values()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_a_saved_router_decides_the_same(tmp_path: object) -> None:
    router, experts = prepared(select="softmax", form="joint", rate=0.1, floor=0.2), bank()
    router.add_task(torch.ones(8))
    weights(router, [0], training=True, step=12)
    save_bank(f"{tmp_path}/bank", experts, router)
    again = load_router(f"{tmp_path}/bank", load_bank(f"{tmp_path}/bank"))
    assert isinstance(again, TaskMoE)
    assert torch.equal(weights(again, [0, 5]), weights(router, [0, 5]))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="straight-through"):
        TaskMoE(select="straight-throuh")
    with pytest.raises(UsageError, match="recurrent"):
        build_router("task-moe:form=recurent")
    for wrong in ({"tasks": 0}, {"floor": 0.0}, {"explore": 1.5}):
        with pytest.raises(UsageError, match=r"router task-moe: expected (tasks|tau|explore)"):
            TaskMoE(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_routes_follow_the_names_of_experts(form: str, caplog: pytest.LogCaptureFixture) -> None:
    experts = bank()
    router = prepared(experts, form=form)
    call = Call(task_ids_B=torch.tensor([0, 4]))
    before_BLE = router.logits(call)
    gone = experts.remove("b")
    experts.rename("d", "new")
    router.prepare(experts)
    torch.testing.assert_close(router.logits(call), before_BLE[..., [0, 2, 3]])
    assert not caplog.text
    experts.add(gone)
    router.prepare(experts)
    torch.testing.assert_close(router.logits(call)[..., :3], before_BLE[..., [0, 2, 3]])
    assert "experts or blocks are new" in caplog.text


def test_blocks_stand_in_the_order_of_their_numbers_whatever_that_of_the_bank() -> None:
    layers = [f"layers.{n}.q_proj" for n in (10, 0, 2)]
    experts = AdapterBank(
        [
            Expert(name=name, modules={layer: toys.lora(2, 6, 4) for layer in layers})
            for name in "ab"
        ]
    )
    assert prepared(experts).blocks == ("layers.0", "layers.2", "layers.10")


@pytest.mark.parametrize("select", ["softmax", "average", "random"])
def test_an_expert_of_any_layer_of_the_block_may_be_chosen(select: str) -> None:
    experts = bank("ab")
    only_v = Expert(name="c", modules={layer: toys.lora(2, 6, 4) for layer in LAYERS[1::2]})
    experts.add(only_v)
    router = prepared(experts, select=select, tasks=40)
    alive = experts.alive_by_owner("layer")
    given_ = RouteInput(
        module=LAYERS[0],
        x_BTI=torch.zeros(40, 1, 6),
        bank=experts.layers[LAYERS[0]],
        call=Call(task_ids_B=torch.arange(40)),
        any_alive_E=alive["layers.0"],
    )
    assert router.route(given_).dense(3)[..., 2].any()
    alone = replace(given_, any_alive_E=None)
    assert not router.route(alone).dense(3)[..., 2].any()
