"""Routed models: in and out of real architectures, caches, beams, checkpointing, threads."""

from __future__ import annotations

import copy
import logging
import threading
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank, Expert, ModuleBank
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import Call, Mode, RouteInput, Router, Routing
from crossroads.adapters.insertion import RoutedLinear, RoutedModel
from crossroads.adapters.passes import Pass
from crossroads.adapters.routers import build_router
from crossroads.adapters.survey.schema import Cells
from crossroads.core.errors import InputError
from tests.adapters.gated import Gated
from tests.adapters.toys import (
    bank_for,
    experts,
    ids,
    linear_layers,
    lora,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    tiny_t5,
)

T5_LAYERS = ("q", "k", "v", "o", "wi", "wo")
BERT_LAYERS = ("query", "value", "dense")
GPT2_LAYERS = ("c_attn", "c_fc", "c_proj")


@pytest.mark.parametrize(
    ("make", "ends"),
    [
        (tiny_llama, ("q_proj", "v_proj", "down_proj")),
        (tiny_t5, T5_LAYERS),
        (tiny_bert, BERT_LAYERS),
        (tiny_gpt2, GPT2_LAYERS),
    ],
)
def test_in_and_out_again_bit_by_bit(make: Any, ends: tuple[str, ...]) -> None:
    model = make()
    x = {"input_ids": ids(2, 6)}
    if hasattr(model, "decoder"):
        x["decoder_input_ids"] = ids(2, 4, seed=1)
    modules = dict(model.named_modules())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        before = model(**x)[0]
        routed = RoutedModel(model, bank_for(model, 3, ends=ends), build_router("phatgoose"))
        inside = model(**x)[0]
        with routed.disabled():
            assert torch.equal(model(**x)[0], before)
        assert not torch.allclose(inside, before, atol=1e-3)
        assert routed.unwrap() is model
        assert torch.equal(model(**x)[0], before)
    assert dict(model.named_modules()) == modules
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_wrapped_layer_answers_for_the_layer() -> None:
    model = tiny_llama()
    routed = RoutedModel(model, bank_for(model, 2), build_router("uniform"))
    layer = model.model.layers[0].mlp.down_proj
    assert isinstance(layer, RoutedLinear)
    assert layer.weight is layer.base_layer.weight
    assert layer.bias is None
    assert (layer.in_features, layer.out_features) == (24, 16)
    with pytest.raises(InputError, match=r"q_proj: has routed experts already; unwrap"):
        RoutedModel(model, routed.bank, build_router("uniform"))


@pytest.mark.parametrize("spec", ["phatgoose", "phatgoose:k=1", "uniform"])
def test_decoding_step_by_step_equals_reading_at_once(spec: str) -> None:
    model = tiny_llama()
    RoutedModel(model, bank_for(model, 4), build_router(spec))
    x = ids(2, 9)
    with torch.no_grad():
        whole = model(x).logits
        cache, steps = None, []
        for position in range(x.shape[1]):
            out = model(x[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-4, rtol=1e-4)


def test_generated_text_is_the_same_with_and_without_a_cache() -> None:
    model = tiny_llama()
    RoutedModel(model, bank_for(model, 4), build_router("phatgoose"))
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones(2, 5).long()}
    x = ids(2, 5)
    cached = model.generate(x, use_cache=True, **options)
    assert torch.equal(cached, model.generate(x, use_cache=False, **options))
    assert cached.shape == (2, 11)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 2, "num_return_sequences": 2, "do_sample": False},
        {"num_return_sequences": 3, "do_sample": True, "top_k": 1},
    ],
)
def test_beams_and_several_answers_keep_each_sequences_expert(options: dict[str, Any]) -> None:
    model = tiny_llama()
    RoutedModel(model, bank_for(model, 3), build_router("named"))
    x = ids(2, 4)
    names = ["e0", "e2"]

    def answers(rows: Tensor, who: list[str]) -> Tensor:
        mask = torch.ones_like(rows)
        with calling(experts=who):
            return model.generate(rows, attention_mask=mask, max_new_tokens=5, **options)

    together = answers(x, names)
    alone = torch.cat([answers(x[i : i + 1], [names[i]]) for i in range(2)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, answers(x, ["e1", "e1"]))


def test_a_batch_that_no_beams_explain_is_refused() -> None:
    model = tiny_llama()
    RoutedModel(model, bank_for(model, 3), build_router("named"))
    refused = pytest.raises(InputError, match="experts speaks of 2 sequences, the batch has 3")
    with refused, calling(experts=["e0", "e1"]):
        model(ids(3, 4))
    with pytest.raises(InputError, match=r"router named: needs 'experts' of every batch"):
        model(ids(3, 4))


def test_padding_changes_nothing_for_real_tokens() -> None:
    model = tiny_bert()
    RoutedModel(model, bank_for(model, 3, ends=BERT_LAYERS), build_router("phatgoose"))
    x = ids(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        padded = model(x, attention_mask=mask).last_hidden_state
        alone = model(x[1:, :3]).last_hidden_state
    torch.testing.assert_close(padded[1, :3], alone[0], atol=1e-5, rtol=1e-5)


def test_threads_run_one_model_with_their_own_experts() -> None:
    model = tiny_llama()
    routed = RoutedModel(model, bank_for(model, 3), build_router("named"))
    x = ids(2, 6)
    names = ["e0", "e1", "e2", None]
    with torch.no_grad():
        expected = []
        for name in names:
            with calling(experts=[name]):
                expected.append(model(x).logits)
    wrong: list[str | None] = []
    together = threading.Barrier(len(names))

    def work(place: int) -> None:
        with torch.no_grad(), calling(experts=[names[place]]):
            for _ in range(8):
                together.wait()
                logits = model(x).logits
                same = torch.allclose(logits, expected[place], atol=1e-5)
                if not same or routed.current.call.experts != (names[place],):
                    wrong.append(names[place])

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_switching_experts_off_holds_for_one_thread() -> None:
    model = tiny_llama()
    routed = RoutedModel(model, bank_for(model, 3), build_router("uniform"))
    seen = []
    with routed.disabled():
        thread = threading.Thread(target=lambda: seen.append(routed.is_enabled))
        thread.start()
        thread.join()
        assert not routed.is_enabled
    assert seen == [True]
    assert routed.is_enabled


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_with_either_bank(dtype: torch.dtype) -> None:
    model = tiny_llama().to(dtype)
    bank = bank_for(model, 3, size=0.1)
    RoutedModel(model, bank, Gated())
    with torch.no_grad():
        wide = model(ids(2, 6)).logits
        for module in bank.layers.values():
            module.a_ERI.data, module.b_EOR.data = module.a_ERI.to(dtype), module.b_EOR.to(dtype)
        narrow = model(ids(2, 6)).logits
    assert wide.dtype == narrow.dtype == dtype
    torch.testing.assert_close(wide, narrow, atol=0.05, rtol=0.05)


def test_autocast_trains_a_router_in_single_precision() -> None:
    model = tiny_llama()
    router = Gated()
    RoutedModel(model, bank_for(model, 3), router)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids(2, 6), labels=ids(2, 6)).loss
    loss.backward()
    assert router.gate_EI.grad is not None
    assert router.gate_EI.grad.isfinite().all()
    assert router.gate_EI.grad.any()


def test_two_axes_are_rows_of_one_token() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    found = [Expert(name=f"e{i}", modules={"0": lora(2, 6, 4, seed=i)}) for i in range(2)]
    RoutedModel(model, AdapterBank(found), build_router("uniform"))
    x = torch.randn(5, 6)
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(x[:, None])[:, 0])
        assert model(x.view(5, 1, 1, 6)).shape == (5, 1, 1, 4)


def test_experts_that_do_not_adapt_a_layer_are_left_out_and_weights_add_up_again() -> None:
    model = tiny_llama()
    names = linear_layers(model)
    found = experts(model, ["a", "b", "c"])
    partial_one = Expert(name="c", modules={names[0]: found[2].modules[names[0]]})
    bank = AdapterBank([found[0], found[1], partial_one])
    router = Gated("layer")
    routed = RoutedModel(model, bank, router)
    routed.checks = True
    with torch.no_grad():
        model(ids(1, 4))
    shared = routed.current.decided["model.layers.0"].weights
    first, second = (routed.last_routings[name].weights for name in names[:2])
    assert torch.equal(first, shared)
    assert not second[..., 2].any()
    torch.testing.assert_close(second[..., :2], shared[..., :2] / (1 - shared[..., 2:]))


def test_a_token_without_living_experts_is_the_base_models() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    a = Expert(name="a", modules={"0": lora(2, 6, 6)})
    b = Expert(name="b", modules={"1": lora(2, 6, 6, seed=1)})
    x = torch.randn(1, 3, 6)
    last = model[1]
    routed = RoutedModel(model, AdapterBank([a, b]), build_router("named"), kernel="dense")
    inputs: list[Tensor] = []
    model[1].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad(), calling(experts=["a"]):
        y = model(x)
    assert not routed.last_routings["1"].weights.any()
    assert torch.equal(y, last(inputs[0]))


def test_experts_come_and_go_without_a_trace() -> None:
    model = tiny_llama()
    bank = bank_for(model, 3)
    extra = experts(model, [f"x{i}" for i in range(4)])[3]
    RoutedModel(model, bank, build_router("phatgoose"))
    with torch.no_grad():
        before = model(ids(2, 6)).logits
        bank.add(extra)
        between = model(ids(2, 6)).logits
        bank.remove(extra.name)
        after = model(ids(2, 6)).logits
    assert torch.equal(before, after)
    assert not torch.equal(before, between)


def test_a_watcher_sees_every_pass_that_ended_well() -> None:
    model = tiny_llama()
    routed = RoutedModel(model, bank_for(model, 3), build_router("named"))
    seen: list[Pass] = []
    with routed.watched(seen.append):
        with calling(experts=["e0"]):
            model(ids(1, 4))
            model.base_model(ids(1, 4))  # without the head
        with pytest.raises(InputError):
            model(ids(1, 4))
        with routed.disabled():
            model(ids(1, 4))
    with calling(experts=["e0"]):
        model(ids(1, 4))
    assert len(seen) == 2
    assert all(one.call.experts == ("e0",) and len(one.seen) == 10 for one in seen)


def test_a_pass_after_an_error_begins_anew() -> None:
    model = tiny_llama()
    routed = RoutedModel(model, bank_for(model, 3), Gated("layer"))
    with pytest.raises(IndexError):
        model(torch.full((1, 4), 99))
    with torch.no_grad():
        model.base_model(ids(2, 6))
    assert all(seen.shape == (2, 6) for seen in routed.current.seen.values())


def test_a_copy_of_the_model_is_independent() -> None:
    model = tiny_llama()
    RoutedModel(model, bank_for(model, 3), build_router("phatgoose"))
    other = copy.deepcopy(model)
    layer: Any = other.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        before = model(ids(1, 4)).logits
        assert torch.equal(other(ids(1, 4)).logits, before)
        layer._parts[0].b_EOR += 1.0
        assert not torch.equal(other(ids(1, 4)).logits, before)
        assert torch.equal(model(ids(1, 4)).logits, before)


def _one(layer: str, inputs: int, outputs: int) -> AdapterBank:
    return AdapterBank([Expert(name="a", modules={layer: lora(2, inputs, outputs)})])


@pytest.mark.parametrize(
    ("layer", "size", "message"),
    [
        ("nowhere", (6, 4), "layer nowhere: the model has none of this name"),
        ("0", (6, 5), "layer 0: the adapters have 6 inputs and 5 outputs, the model 6 and 4"),
        ("1", (4, 4), "layer 1: expected a linear layer, it is LayerNorm"),
        ("2.out_proj", (4, 4), "MultiheadAttention reads its weight without calling it"),
    ],
)
def test_a_bank_of_another_model_is_refused(
    layer: str, size: tuple[int, int], message: str
) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.MultiheadAttention(4, 1))
    with pytest.raises(InputError, match=message):
        RoutedModel(model, _one(layer, *size), build_router("uniform"))
    assert not any(isinstance(m, RoutedLinear) for m in model.modules())


def test_a_change_that_cannot_be_followed_is_refused_in_every_pass() -> None:
    model = tiny_llama()
    bank = bank_for(model, 3)
    RoutedModel(model, bank, build_router("phatgoose"))
    inside = dict(model.named_modules())
    bad = [
        Expert(name="bad", modules={"model.layers.9.mlp.up_proj": lora(2, 16, 24)}),
        experts(model, ["bad"], kinds=())[0],  # without a gate
    ]
    with torch.no_grad():
        before = model(ids(2, 6)).logits
        for one in bad:
            bank.add(one)
            for _ in range(2):
                with pytest.raises(InputError, match=r"layers\.9|no 'gate'"):
                    model(ids(2, 6))
                assert dict(model.named_modules()) == inside
            bank.remove("bad")
            assert torch.equal(model(ids(2, 6)).logits, before)
            inside = dict(model.named_modules())


def test_after_unwrap_nothing_is_put_in_again() -> None:
    model = tiny_llama()
    before = dict(model.named_modules())
    routed = RoutedModel(model, bank_for(model, 2), build_router("uniform"))
    routed.unwrap()
    with pytest.raises(InputError, match="taken out by unwrap"):
        routed.refresh()
    assert dict(model.named_modules()) == before


def test_a_router_serves_one_bank_at_a_time() -> None:
    models = [tiny_llama(seed) for seed in (0, 1)]
    banks = [bank_for(model, 3, seed=seed) for seed, model in enumerate(models)]
    router = build_router("phatgoose")
    first = RoutedModel(models[0], banks[0], router)
    with torch.no_grad():
        before = models[0](ids(2, 6)).logits
        with pytest.raises(InputError, match="phatgoose: routes for another bank in another model"):
            RoutedModel(models[1], banks[1], router)
        assert torch.equal(models[0](ids(2, 6)).logits, before)
    assert not any(isinstance(m, RoutedLinear) for m in models[1].modules())
    RoutedModel(models[1], banks[0], router).unwrap()  # what it knows holds for both
    first.unwrap()
    RoutedModel(models[1], banks[1], router)
    del models[1]  # and freed with the model that held it
    RoutedModel(models[0], banks[0], router)


def test_a_layer_under_two_names_is_refused_and_a_shared_block_is_not() -> None:
    layer = "0.0"
    block = nn.Sequential(nn.Linear(6, 6))
    twice = nn.Sequential(block, block)
    base = block[0]
    routed = RoutedModel(twice, _one(layer, 6, 6), build_router("uniform"))
    assert isinstance(twice[1][0], RoutedLinear)
    routed.unwrap()
    tied = nn.Sequential(block, nn.Sequential(base))
    with pytest.raises(InputError, match=r"layer 0\.0: the model has it as 1\.0 too"):
        RoutedModel(tied, _one(layer, 6, 6), build_router("uniform"))
    assert tied[0][0] is tied[1][0] is base


class Averaging(Router):
    """Averages factors of experts that were trained apart."""

    name: ClassVar[str] = "averaging"
    mode: ClassVar[Mode] = "merge_factors"
    cells: ClassVar[Cells | None] = Cells(
        expert_training="Standard", expert_data="Private", routing_dataset="None",
        input_granularity="Task", depth_granularity="Model", expert_selection="Dense",
        expert_aggregation="Parameter", generalization="Out-of-Distribution",
        user_dataset="Zero-Shot",
    )  # fmt: skip

    def route(self, given: RouteInput) -> Routing:
        return Routing(weights=torch.ones(1, 1, 1, 2), mode="merge_factors", normalised=False)


def test_averaging_factors_of_strangers_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_llama()
    with caplog.at_level(logging.WARNING):
        RoutedModel(model, bank_for(model, 2), Averaging()).unwrap()
        assert "trained apart" in caplog.text
        caplog.clear()
        RoutedModel(model, bank_for(model, 2), build_router("uniform"))
    assert not caplog.text


def test_the_call_of_the_backbone_may_be_enriched_by_a_first_pass() -> None:
    class Ahead(Gated):
        def ahead(self, call: Call, hidden: Any) -> Call:
            found = hidden()
            return Call(task_ids_B=(found[:, -1, 0] > 0).long(), step=found.shape[1])

        def merged(self, bank: ModuleBank) -> None:
            return None

    model = tiny_llama()
    router = Ahead("model")
    routed = RoutedModel(model, bank_for(model, 3), router)
    with torch.no_grad():
        model(ids(2, 6))
        with routed.disabled():
            hidden = model.base_model(ids(2, 6)).last_hidden_state
    assert routed.current.call.step == 6
    assert routed.current.call.task_ids_B is not None
    assert torch.equal(routed.current.call.task_ids_B, (hidden[:, -1, 0] > 0).long())


@pytest.mark.parametrize("recorded", [True, False])
def test_hooks_keep_what_the_base_layer_said_and_its_output_is_weighed(recorded: bool) -> None:
    class Weighed(Router):
        name: ClassVar[str] = "weighed"

        def route(self, given: RouteInput) -> Routing:
            base = torch.full((*given.x_BTI.shape[:2], 1), 0.25)
            return Routing(weights=torch.ones(1, 1, 1, 1), normalised=False, base=base)

    model = nn.Sequential(nn.Linear(6, 4))
    one = lora(2, 6, 4)
    x = torch.randn(2, 3, 6)
    with torch.set_grad_enabled(recorded):
        said, added = model(x), x @ one.delta_OI().T
        bank = AdapterBank([Expert(name="a", modules={"0": one})])
        routed = RoutedModel(model, bank, Weighed())
        torch.testing.assert_close(model(x), 0.25 * said + added)
        routed.unwrap()
        RoutedModel(model, bank, Gated(experts=1))
        seen: list[Tensor] = []
        model[0].base_layer.register_forward_hook(lambda *hooked: seen.append(hooked[2]))
        torch.testing.assert_close(model(x), said + added)
        assert torch.equal(seen[0], said)
