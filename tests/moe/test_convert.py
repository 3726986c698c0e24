"""Models of ``transformers`` keep their outputs when their feed-forwards become ours."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from crossroads.core.errors import InputError, UnavailableError, UsageError
from crossroads.core.routed import RouteContext
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

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
QWEN: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "head_dim": 8,
}
DEEPSEEK: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "routed_scaling_factor": 2.0,
}
SPARSE: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: tf.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "olmoe": lambda: tf.OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2),
    "qwen2_moe": lambda: tf.Qwen2MoeConfig(**SIZES, **QWEN, shared_expert_intermediate_size=12),
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(**SIZES, **QWEN, norm_topk_prob=True),
    "deepseek_v2": lambda: tf.DeepseekV2Config(
        **SIZES, **DEEPSEEK, topk_method="group_limited_greedy"
    ),
    "deepseek_v3": lambda: tf.DeepseekV3Config(**SIZES, **DEEPSEEK, norm_topk_prob=True),
}


def made(config: Any) -> Any:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:  # far from the near-zero start, so that experts matter
                parameter.normal_(std=0.3)
            elif "correction" in name:
                parameter.normal_()
    return model


def llama(**more: Any) -> Any:
    return made(tf.LlamaConfig(**{**SIZES, **more}))


def logits_of(model: Any, ids_BT: Any, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(ids_BT, **more).logits
    return logits


IDS_BT = torch.randint(2, 60, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("router", ["top2", "sigmoid:k=2", "hash", "switch:k=2:renorm=true"])
def test_upcycling_leaves_the_outputs_where_weights_sum_to_one(
    router: str, dtype: torch.dtype, near: float
) -> None:
    model = llama().to(dtype)
    before = logits_of(model, IDS_BT)
    upcycle(model, router=router, n_experts=4)
    blocks = [m for m in model.modules() if isinstance(m, RoutedMLP)]
    assert [b.moe.layer for b in blocks] == [0, 1, 2]
    assert [b.moe.out_scale for b in blocks] == [1.0] * 3
    torch.testing.assert_close(logits_of(model, IDS_BT), before, atol=near, rtol=near)


@pytest.mark.parametrize("router", ["switch", "sigmoid", "softmax-tc:k=3"])
def test_other_weights_are_scaled_and_equal_scores_make_that_exact(router: str) -> None:
    model = llama()
    before = logits_of(model, IDS_BT)
    scaled = upcycle(copy.deepcopy(model), router=router, n_experts=4)
    assert all(m.moe.out_scale > 1.0 for m in scaled.modules() if isinstance(m, RoutedMLP))
    assert not torch.allclose(logits_of(scaled, IDS_BT), before, atol=1e-3)
    upcycle(model, router=router, n_experts=4, router_std=0.0)
    torch.testing.assert_close(logits_of(model, IDS_BT), before, atol=1e-5, rtol=1e-5)


def test_chosen_layers_are_routed_and_noise_tells_copies_apart() -> None:
    model = upcycle(llama(), n_experts=4, layers="odd", noise_std=0.1, seed=3)
    again = upcycle(llama(), n_experts=4, layers=[1], noise_std=0.1, seed=3)
    (block,) = [m for m in model.modules() if isinstance(m, RoutedMLP)]
    assert block.moe.layer == 1
    assert not torch.equal(block.moe.experts.up[0], block.moe.experts.up[1])
    torch.testing.assert_close(logits_of(model, IDS_BT), logits_of(again, IDS_BT))


def test_generation_with_a_cache_equals_the_dense_model_and_plain_recomputation() -> None:
    model = llama()
    wanted = model.generate(IDS_BT, max_new_tokens=6, do_sample=False)
    upcycle(model, n_experts=4)
    cached = model.generate(IDS_BT, max_new_tokens=6, do_sample=False)
    plain = model.generate(IDS_BT, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(cached, wanted)
    assert torch.equal(plain, wanted)


@pytest.mark.parametrize("tied", [False, True])
def test_a_converted_model_reads_back_the_same(tmp_path: Path, tied: bool) -> None:
    model = llama(tie_word_embeddings=tied)
    upcycle(model, router="switch", n_experts=4, layers=[0, 2], noise_std=0.2)
    save_converted(model, str(tmp_path / "model"))
    again = load_converted(str(tmp_path / "model"))
    assert torch.equal(logits_of(again, IDS_BT), logits_of(model, IDS_BT))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "crossroads.json",
        "model.safetensors",
    ]
    (tmp_path / "model" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="weights cannot be read"):
        load_converted(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{", "utf-8")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        load_converted(tmp_path / "model")
    with pytest.raises(InputError, match="holds no converted model"):
        load_converted(tmp_path)
    with pytest.raises(UsageError, match="was not converted"):
        save_converted(llama(), tmp_path / "dense")


def test_a_folder_runs_no_code_of_its_own(tmp_path: Path) -> None:
    save_converted(upcycle(llama(), n_experts=2), tmp_path)
    (tmp_path / "own.py").write_text("raise SystemExit('ran')", "utf-8")
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "own.Own"}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    kept = json.loads((tmp_path / "crossroads.json").read_text("utf-8"))
    kept |= {"load": {"trust_remote_code": True}, "eager": {"trust_remote_code": True}}
    (tmp_path / "crossroads.json").write_text(json.dumps(kept), "utf-8")
    assert type(load_converted(tmp_path)).__module__.startswith("transformers.")


@pytest.mark.parametrize("cast", ["before", "after", "router alone"])
@pytest.mark.parametrize("family", ["dense", "mixtral", "deepseek_v3"])
def test_a_converted_model_reads_back_in_its_precision(
    tmp_path: Path, family: str, cast: str
) -> None:
    model = llama(tie_word_embeddings=True) if family == "dense" else made(SPARSE[family]())
    if cast == "before":
        model = model.to(torch.bfloat16)
    model = upcycle(model, n_experts=4) if family == "dense" else swap_router(model, "top2")
    if cast == "after":
        model = model.to(torch.bfloat16)
    if cast == "router alone":
        next(m for m in model.modules() if isinstance(m, RoutedMLP)).moe.router.double()
    save_converted(model, tmp_path)
    again = load_converted(tmp_path)
    kept = {n: t.dtype for n, t in [*model.named_parameters(), *model.named_buffers()]}
    assert {n: t.dtype for n, t in [*again.named_parameters(), *again.named_buffers()]} == kept
    assert torch.equal(logits_of(again, IDS_BT), logits_of(model, IDS_BT))


@pytest.mark.parametrize("family", sorted(SPARSE))
def test_a_sparse_model_keeps_its_outputs_with_its_own_router(family: str) -> None:
    model = made(SPARSE[family]())
    mask_BT = torch.ones_like(IDS_BT)
    mask_BT[0, :3] = 0  # left padding
    before = logits_of(model, IDS_BT)
    padded = logits_of(model, IDS_BT, attention_mask=mask_BT)
    swap_router(model)
    torch.testing.assert_close(logits_of(model, IDS_BT), before, atol=1e-5, rtol=1e-5)
    after = logits_of(model, IDS_BT, attention_mask=mask_BT)
    real_BT = mask_BT.bool()
    torch.testing.assert_close(after[real_BT], padded[real_BT], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(SPARSE))
def test_any_router_stands_in_for_the_old_one_and_is_saved(family: str, tmp_path: Path) -> None:
    model = swap_router(made(SPARSE[family]()), "top2")
    experts = {n: p for n, p in model.named_parameters() if "experts" in n}
    assert experts
    with observed(model) as passes:
        logits = logits_of(model, IDS_BT)
    assert torch.isfinite(logits).all()
    (output, context) = passes[0]
    assert context.causal
    assert [r.layer for r in output.records] == sorted(kinds_of(model))
    assert all(r.decisions[0].weights == "normalised" for r in output.records)
    save_converted(model, tmp_path / "model")
    assert torch.equal(logits_of(load_converted(tmp_path / "model"), IDS_BT), logits)


def test_generation_is_recorded_as_prefill_and_decoding() -> None:
    model = swap_router(made(SPARSE["deepseek_v3"]()))
    mask_BT = torch.ones_like(IDS_BT)
    mask_BT[0, :3] = 0
    with recording(model, Recorder(kinds=kinds_of(model))) as recorder:
        out = model.generate(IDS_BT, attention_mask=mask_BT, max_new_tokens=4, do_sample=False)
    trace = recorder.trace()
    assert trace.seq_ptr.tolist() == [0, 6 + 3, 9 + 9 + 3]
    assert trace.token_id[9:].tolist() == out[1, :12].tolist()
    assert trace.phase[:9].tolist() == [0] * 6 + [1] * 3
    assert trace.expert.shape[1:] == (2, 2)
    assert [row["layer"] for row in trace.rows] == [1, 2]
    assert (np.diff(trace.weight.astype(np.float32), axis=-1) <= 0).all()


def test_every_generation_starts_sequences_of_its_own() -> None:
    model = upcycle(llama(num_hidden_layers=1), n_experts=2)
    with recording(model, Recorder()) as recorder:
        first = model.generate(IDS_BT, max_new_tokens=2, do_sample=False)
        other = model.generate(IDS_BT.flip(0), max_new_tokens=3, do_sample=False)
    trace = recorder.trace()
    assert trace.seq_ptr.tolist() == [0, 10, 20, 31, 42]  # the last token is not run
    seen = [row[:-1] for ids in (first, other) for row in ids]
    assert trace.token_id.tolist() == torch.cat(seen).tolist()
    assert trace.phase.tolist() == ([0] * 9 + [1]) * 2 + ([0] * 9 + [1, 1]) * 2


def test_a_new_router_keeps_the_size_of_the_routed_part() -> None:
    def scales(model: Any) -> list[float]:
        return [m.moe.out_scale for m in model.modules() if isinstance(m, RoutedMLP)]

    deepseek = swap_router(made(SPARSE["deepseek_v3"]()), "top2")
    assert scales(deepseek) == pytest.approx([2.0, 2.0], rel=1e-4)  # its routed_scaling_factor
    dense = llama()
    before = logits_of(dense, IDS_BT)
    swapped = swap_router(upcycle(dense, router="switch", n_experts=4), "top2")
    assert scales(swapped) == pytest.approx([1.0] * 3, rel=1e-6)
    torch.testing.assert_close(logits_of(swapped, IDS_BT), before, atol=1e-5, rtol=1e-5)


def test_null_experts_can_be_swapped_in() -> None:
    model = swap_router(made(SPARSE["olmoe"]()), "adamoe:n_null=4")
    with observed(model) as passes:
        assert torch.isfinite(logits_of(model, IDS_BT)).all()
    assert {r.decisions[0].n_experts for r in passes[0][0].records} == {8}
    assert kinds_of(model)[0] == ("ffn",) * 4 + ("null",) * 4


def test_losses_and_gradients_of_a_training_pass_reach_the_routers() -> None:
    model = upcycle(llama(), router="switch", n_experts=4).train()
    with observed(model, RouteContext(seed=5, step=2)) as passes:
        loss = model(IDS_BT, labels=IDS_BT).loss
    output, context = passes[0]
    assert context.training
    assert context.step == 2
    assert set(output.aux_values()) == {"balance"}
    (loss + output.aux_loss()).backward()
    gates = [p for n, p in model.named_parameters() if "router" in n]
    assert len(gates) == 3
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in gates)


@pytest.mark.parametrize("beams", [1, 3])
def test_beams_that_change_places_are_not_recorded(beams: int) -> None:
    model = upcycle(llama(), n_experts=4)
    recorder = Recorder()
    asked = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams}
    if beams == 1:
        with recording(model, recorder):
            model.generate(IDS_BT, **asked)
            model.generate(IDS_BT, **asked)  # starts again: nothing to follow
        assert recorder.trace().n_tokens == 2 * 2 * (9 + 5)
        return
    with pytest.raises(InputError, match="num_beams=1"), recording(model, recorder):
        model.generate(IDS_BT, **asked)
    model.generate(IDS_BT, **asked)  # outside of a recording beams are as good as ever


def test_a_copied_model_has_surroundings_of_its_own() -> None:
    model = upcycle(llama(), n_experts=4)
    twin = copy.deepcopy(model)
    with observed(model) as passes:
        logits_of(twin, IDS_BT)
        assert passes == []
        logits_of(model, IDS_BT)
    assert len(passes) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: upcycle(made(SPARSE["mixtral"]())),
            "model like Llama, Qwen or Mistral, or try swap",
        ),
        (lambda: upcycle(llama(), layers=[7]), r"layers: the model has \[0, 1, 2\]"),
        (lambda: upcycle(llama(), layers="some"), "layers: expected all, odd"),
        (lambda: upcycle(llama(mlp_bias=True)), "without biases"),
        (lambda: upcycle(llama(hidden_act="gelu")), "SiLU"),
        (lambda: upcycle(llama(), router="softmax-ec"), "cannot give"),
        (lambda: upcycle(llama(), noise_std=-1.0), "noise_std"),
        (lambda: upcycle(llama(), noise_std=math.nan), "noise_std: expected a finite number"),
        (lambda: upcycle(llama(), router_std=-1.0), "router_std: expected a finite number"),
        (
            lambda: swap_router(made(SPARSE["mixtral"]()), "orignal"),
            "did you mean 'original'.*, original",
        ),
        (lambda: upcycle(llama(), router="hash", router_std=0.0), "no linear score"),
        (lambda: swap_router(llama()), "no mixture of experts.* like Mixtral, OLMoE or Qwen-MoE"),
        (lambda: upcycle(torch.nn.Linear(2, 2)), "Linear has no dense feed-forward"),
        (lambda: upcycle(upcycle(llama())), "LlamaForCausalLM is converted already"),
        (lambda: upcycle(llama(), layers=[]), r"layers: expected some of \[0, 1, 2\], got none"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_the_original_router_refuses_what_it_cannot_do() -> None:
    model = swap_router(made(SPARSE["mixtral"]()))
    bias = RouteContext(logit_bias=torch.zeros(4))
    with pytest.raises(UsageError, match="original"), observed(model, bias):
        logits_of(model, IDS_BT)


@pytest.mark.slow
def test_smollm2_upcycled_computes_what_it_did() -> None:
    from crossroads.models.smollm2_torch import load_smollm2

    try:
        model = load_smollm2(dtype="float64")  # in float32 the two orders of summing differ
    except UnavailableError as error:
        pytest.skip(str(error))
    ids_BT = torch.randint(100, 40000, (1, 12), generator=torch.Generator().manual_seed(1))
    before = logits_of(model, ids_BT)
    upcycle(model, n_experts=2, layers=(3, 20))
    torch.testing.assert_close(logits_of(model, ids_BT), before, atol=1e-6, rtol=1e-6)
