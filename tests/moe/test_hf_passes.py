"""Blocks of a converted model see the pass they are part of, also when it is computed again."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from crossroads.core.errors import UsageError
from crossroads.moe.convert import (
    load_converted,
    observed,
    recording,
    save_converted,
    swap_router,
    upcycle,
)
from crossroads.moe.hf_blocks import RoutedMLP
from crossroads.moe.recording import Recorder, kinds_of
from tests.moe.test_convert import IDS_BT, SPARSE, llama, logits_of, made

FIRST_BT = torch.ones_like(IDS_BT)
FIRST_BT[0, :3] = 0  # as many real tokens as the second, at other places
SECOND_BT = torch.ones_like(IDS_BT)
SECOND_BT[1, :3] = 0


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("second", [(IDS_BT.flip(1), SECOND_BT), (IDS_BT[:, :6], None)])
def test_two_passes_before_one_backward_are_each_computed_again_as_they_were(
    second: tuple[torch.Tensor, torch.Tensor | None], use_reentrant: bool
) -> None:
    def run(checkpoint: bool) -> dict[str, torch.Tensor]:
        model = swap_router(made(SPARSE["mixtral"]())).train()
        if checkpoint:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model.config.use_cache = False
        first = model(IDS_BT, attention_mask=FIRST_BT, labels=IDS_BT).loss
        other = model(second[0], attention_mask=second[1], labels=second[0]).loss
        (first - other).backward()
        return gradients(model)

    plain, again = run(False), run(True)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient)


def test_a_checkpoint_around_a_layer_repeats_the_last_pass() -> None:
    def run(checkpoint: bool) -> dict[str, torch.Tensor]:
        model = swap_router(made(SPARSE["mixtral"]())).train()
        model.config.use_cache = False
        if checkpoint:
            for layer in model.model.layers:
                plain = layer.forward
                layer.forward = lambda *a, plain=plain, **k: torch.utils.checkpoint.checkpoint(
                    plain, *a, use_reentrant=False, **k
                )
        model(IDS_BT, attention_mask=FIRST_BT, labels=IDS_BT).loss.backward()
        return gradients(model)

    plain, again = run(False), run(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient)


def test_the_model_below_the_head_starts_a_pass_of_its_own() -> None:
    model = made(SPARSE["mixtral"]())
    with torch.no_grad():
        before = model.model(IDS_BT).last_hidden_state
        padded = model.model(IDS_BT, attention_mask=SECOND_BT).last_hidden_state
        swap_router(model)
        model(IDS_BT, attention_mask=FIRST_BT)
        torch.testing.assert_close(model.model(IDS_BT).last_hidden_state, before)
        shorter = model.model(IDS_BT[:1, :5]).last_hidden_state
        torch.testing.assert_close(shorter, before[:1, :5])
        with observed(model) as passes:
            after = model.model(IDS_BT, attention_mask=SECOND_BT).last_hidden_state
    real_BT = SECOND_BT.bool()
    torch.testing.assert_close(after[real_BT], padded[real_BT])
    assert len(passes) == 1
    assert torch.equal(passes[0][0].out, after)


def test_a_block_alone_and_one_after_a_failure_know_no_mask() -> None:
    model = swap_router(made(SPARSE["mixtral"]()))
    block = next(m for m in model.modules() if isinstance(m, RoutedMLP))
    h_BTD = torch.randn(3, 4, 16)
    with torch.no_grad():
        before = block(h_BTD)
        model(IDS_BT, attention_mask=FIRST_BT)
        assert torch.equal(block(h_BTD), before)
        with pytest.raises(IndexError):
            model(torch.full((1, 2), 999), attention_mask=torch.zeros(1, 2))
        assert torch.equal(block(h_BTD), before)


def test_a_mask_is_found_whether_it_is_named_or_not() -> None:
    model = swap_router(made(SPARSE["mixtral"]()), "top2")
    with observed(model) as passes, torch.no_grad():
        model(IDS_BT, attention_mask=FIRST_BT)
        model(IDS_BT, FIRST_BT)
        model.__class__ = type("Wrapped", (type(model),), {})
        model(IDS_BT, FIRST_BT)
    assert len(passes) == 3
    for _, context in passes:
        assert context.mask_BT is not None
        assert torch.equal(context.mask_BT, FIRST_BT.bool())


def test_positions_go_on_where_a_cache_ends() -> None:
    model = upcycle(llama(), n_experts=4, router="position", noise_std=0.5)
    whole = logits_of(model, IDS_BT)
    with torch.no_grad(), observed(model) as passes:
        first = model(IDS_BT[:, :5], use_cache=True)
        rest = model(IDS_BT[:, 5:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(rest, whole[:, 5:], atol=1e-5, rtol=1e-5)
    assert passes[1][1].cond["pos"].tolist() == [[5, 6, 7, 8]] * 2


def test_a_copy_of_a_checkpointed_model_looks_at_its_own_passes() -> None:
    model = swap_router(made(SPARSE["olmoe"]()), "top2").train()
    model.activation_checkpointing_enable()
    model.config.use_cache = False
    model(IDS_BT, labels=IDS_BT).loss.backward()
    twin = copy.deepcopy(model)
    with observed(model) as passes:
        twin(IDS_BT, attention_mask=FIRST_BT, labels=IDS_BT).loss.backward()
    assert passes == []
    layer = twin.model.layers[0]
    assert layer._gradient_checkpointing_func.surroundings is layer.mlp.surroundings


# ------------------------------------------------------------------ routers of several layers


def gates(model: Any) -> list[Any]:
    return [m.moe.routers[0] for m in model.modules() if isinstance(m, RoutedMLP)]


def test_a_router_of_all_layers_is_one_in_a_converted_model(tmp_path: Path) -> None:
    upcycled = upcycle(llama(), n_experts=4, router="omni", router_std=0.1)
    swapped = swap_router(made(SPARSE["mixtral"]()), "omni")
    for model in (upcycled, swapped, copy.deepcopy(swapped)):
        assert len({id(router) for router in gates(model)}) == 1
        named = [n for n in model.state_dict() if n.endswith("gate.weight")]
        assert named == ["model.shared_routers.router_0.gate.weight"]
        assert dict(model.named_parameters())[named[0]] is gates(model)[0].gate.weight
    save_file(upcycled.state_dict(), tmp_path / "plain")  # refuses tensors named twice
    save_converted(swapped, tmp_path / "model")
    again = load_converted(tmp_path / "model")
    assert len({id(router) for router in gates(again)}) == 1
    assert torch.equal(logits_of(again, IDS_BT), logits_of(swapped, IDS_BT))


def test_a_plan_says_which_layers_share_and_how_many_experts_they_have() -> None:
    model = upcycle(llama(), n_experts=8, router="omni:share=2x2-1x4")
    first, second, third = gates(model)
    assert first is second
    assert third is not first
    assert [router.n_experts for router in (first, third)] == [2, 4]
    assert kinds_of(model)[2] == ("ffn",) * 4
    swapped = swap_router(made(SPARSE["mixtral"]()), "omni", settings={"share": "1x4-2x4"})
    first, second, third = gates(swapped)
    assert second is third is not first


def test_what_replaces_a_shared_router_leaves_the_state_with_those_in_use(tmp_path: Path) -> None:
    model = swap_router(made(SPARSE["mixtral"]()), "omni:share=1x4-2x4")
    assert [n for n in model.state_dict() if "gate.weight" in n] == [
        "model.shared_routers.router_0.gate.weight",
        "model.shared_routers.router_1.gate.weight",
    ]
    second = gates(model)[2]
    swap_router(model, "top2", layers=[0, 1])
    named = ["model.layers.0.mlp.moe.router", "model.layers.1.mlp.moe.router"]
    assert [n.removesuffix(".gate.weight") for n in model.state_dict() if "gate.weight" in n] == [
        *named,
        "model.shared_routers.router_0",
    ]
    assert gates(model)[2] is second is model.model.shared_routers["router_0"]
    save_converted(model, tmp_path)
    assert torch.equal(logits_of(load_converted(tmp_path), IDS_BT), logits_of(model, IDS_BT))
    swap_router(model, "switch")
    assert "shared_routers" not in dict(model.model.named_children())


def test_a_shared_router_goes_where_the_model_goes() -> None:
    model = upcycle(llama(), n_experts=4, router="omni").double()
    assert gates(model)[1].gate.weight.dtype == torch.float64
    model.train()(IDS_BT, labels=IDS_BT).loss.backward()
    assert float(model.model.shared_routers["router_0"].gate.weight.grad.abs().sum()) > 0


def test_a_shared_router_belongs_to_the_model_below_the_head() -> None:
    model = swap_router(made(SPARSE["mixtral"]()), "omni")
    twin = swap_router(made(SPARSE["mixtral"]()), "omni")
    with torch.no_grad():
        gates(twin)[0].gate.weight.add_(1.0)
    assert any(p is gates(model)[0].gate.weight for p in model.model.parameters())
    twin.model.load_state_dict(model.model.state_dict(), strict=True)
    assert torch.equal(gates(twin)[0].gate.weight, gates(model)[0].gate.weight)
    swap_router(model.model, "top2")
    assert not [name for name in model.state_dict() if "shared_routers" in name]


def older(values: dict[str, Any], model: Any, *, layers: list[int]) -> dict[str, Any]:
    """Return values by name as they were when every layer registered the router it shares."""
    kept = {n: v for n, v in values.items() if not n.startswith("model.shared_routers.")}
    for index in layers:
        (number,) = (n for n, r in model.model.shared_routers.items() if r is gates(model)[index])
        name = f"model.layers.{index}.mlp.moe.router.gate.weight"
        kept[name] = values[f"model.shared_routers.{number}.gate.weight"]
    return kept


def test_states_that_name_a_shared_router_by_its_layers_are_read(tmp_path: Path) -> None:
    model = upcycle(llama(), n_experts=4, router="omni:share=1x4-2x2", noise_std=0.2)
    gates(model)[1].double()
    whole = older(model.state_dict(), model, layers=[0, 1, 2])
    wiped = copy.deepcopy(model)
    for parameter in wiped.parameters():
        parameter.data.zero_()
    for target in (copy.deepcopy(wiped), wiped):
        target.load_state_dict(whole)
        assert torch.equal(logits_of(target, IDS_BT), logits_of(model, IDS_BT))
    save_converted(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(older(weights, model, layers=[0, 2]), tmp_path / "model.safetensors")
    kept = json.loads((tmp_path / "crossroads.json").read_text("utf-8"))
    kept["dtypes"] = older(kept["dtypes"], model, layers=[0, 1])
    (tmp_path / "crossroads.json").write_text(json.dumps(kept), "utf-8")
    read = load_converted(tmp_path)
    assert gates(read)[2].gate.weight.dtype == torch.float64
    assert torch.equal(logits_of(read, IDS_BT), logits_of(model, IDS_BT))


def test_a_plan_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    model = made(SPARSE["mixtral"]())
    with pytest.raises(UsageError, match="its group has 8 experts, layer 0 has 4"):
        swap_router(model, "omni:share=3x8")
    with pytest.raises(UsageError, match="covers 2 layers, the model routes 3"):
        upcycle(llama(), router="omni:share=2x4")
    assert not gates(model)


# ------------------------------------------------------------------ logits of the old routers


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"])
def test_a_model_does_not_ask_for_logits_of_routers_it_has_lost(family: str) -> None:
    config = SPARSE[family]()
    config.output_router_logits = True
    model = made(config)
    swap_router(model)  # its own routers are still there
    assert model(IDS_BT, labels=IDS_BT).aux_loss is not None
    swap_router(model, "top2", layers=[0, 1])
    assert model(IDS_BT, labels=IDS_BT).aux_loss is not None
    with pytest.warns(UserWarning, match="output_router_logits is switched off"):
        swap_router(model, "top2")
    assert bool(torch.isfinite(model(IDS_BT, labels=IDS_BT).loss))
    with pytest.raises(UsageError, match="output_router_logits: none of the model's own"):
        model(IDS_BT, labels=IDS_BT, output_router_logits=True)
    model.config.output_router_logits = True
    with pytest.raises(UsageError, match="output_router_logits"):
        model(IDS_BT)


# ------------------------------------------------------------------ what a recording says


def test_a_recording_tells_what_the_model_is() -> None:
    model = swap_router(made(SPARSE["deepseek_v3"]()))
    with recording(model, Recorder(meta={"router": "mine"})) as recorder:
        model.generate(IDS_BT, max_new_tokens=2, do_sample=False)
    trace = recorder.trace()
    assert trace.meta["router"] == "mine"
    assert trace.meta["dense_layers"] == [0]
    assert trace.meta["width"] == 16
    assert trace.rows[0]["router"] == "original"
    assert trace.rows[0]["bytes_per_expert"] == 3 * 16 * 8 * 4
    assert trace.rows[0]["shared_bytes"] == 3 * 16 * 8 * 4


READS_ATTENTION = "da-moe:importance=self:k_max=4"


def eager(family: str = "mixtral") -> Any:
    model = llama() if family == "llama" else made(SPARSE[family]())
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("family", ["llama", "mixtral", "deepseek_v3"])
def test_a_router_that_reads_attention_gets_that_of_its_layer(family: str, tmp_path: Path) -> None:
    if family == "llama":
        model = upcycle(eager(family), router=READS_ATTENTION, n_experts=4, noise_std=0.2)
    else:
        model = swap_router(eager(family), READS_ATTENTION)
    with observed(model) as passes, torch.no_grad():
        answer = model(IDS_BT, output_attentions=True)
    (output, _) = passes[0]
    for record in output.records:
        own_BHT = answer.attentions[record.layer].diagonal(dim1=2, dim2=3)
        (decision,) = record.decisions
        ran_BT = (decision.choice.idx_NK >= 0).sum(-1).reshape(IDS_BT.shape)
        assert torch.equal(ran_BT, torch.ceil(own_BHT.mean(1) * 4).clamp(1, 4).long())
    save_converted(model, tmp_path)
    assert torch.equal(logits_of(load_converted(tmp_path), IDS_BT), logits_of(model, IDS_BT))


@pytest.mark.parametrize(("cache", "padding"), [("dynamic", 3), ("static", 0)])
def test_attention_is_read_in_decoding_as_in_a_whole_pass(cache: str, padding: int) -> None:
    model = swap_router(eager(), READS_ATTENTION)
    real_BT = torch.ones_like(IDS_BT)
    real_BT[0, :padding] = 0
    shared: dict[str, Any] = {"attention_mask": real_BT, "max_new_tokens": 5, "do_sample": False}
    whole = model.generate(IDS_BT, use_cache=False, **shared)
    with recording(model, Recorder()) as recorder:
        found = model.generate(IDS_BT, **shared, cache_implementation=cache)
    assert torch.equal(found, whole)
    mask_BT = torch.cat([real_BT, torch.ones(2, 4, dtype=torch.long)], 1)
    with recording(model, Recorder()) as again:
        logits_of(model, whole[:, :-1], attention_mask=mask_BT)
    assert (recorder.trace().expert == again.trace().expert).all()


def test_attention_is_read_where_a_layer_is_computed_again_and_by_the_block_in_place() -> None:
    def run(checkpoint: bool) -> dict[str, torch.Tensor]:
        model = copy.deepcopy(swap_router(swap_router(eager(), READS_ATTENTION), READS_ATTENTION))
        assert all(len(layer.self_attn._forward_hooks) == 1 for layer in model.model.layers)
        model.train().config.use_cache = False
        if checkpoint:
            model.activation_checkpointing_enable()
        model(IDS_BT, labels=IDS_BT).loss.backward()
        return gradients(model)

    plain, again = run(False), run(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient)


def test_attention_of_two_passes_before_one_backward_is_of_their_own_lengths() -> None:
    def run(checkpoint: bool) -> dict[str, torch.Tensor]:
        model = swap_router(eager(), READS_ATTENTION).train()
        model.config.use_cache = False
        if checkpoint:
            model.activation_checkpointing_enable()
        first, other = (model(ids, labels=ids).loss for ids in (IDS_BT, IDS_BT[:, :5]))
        (first + other).backward()
        return gradients(model)

    plain, again = run(False), run(True)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient)


def test_attention_that_is_not_shown_is_refused_with_the_remedy() -> None:
    remedy = r"reads the attention .*attn_implementation='eager'"
    model = made(SPARSE["mixtral"]())
    with pytest.raises(UsageError, match=remedy):
        swap_router(model, READS_ATTENTION)
    assert not any(isinstance(m, RoutedMLP) for m in model.modules())
    model = swap_router(eager(), READS_ATTENTION)
    model.set_attn_implementation("sdpa")
    with pytest.raises(UsageError, match=remedy):
        model(IDS_BT)
