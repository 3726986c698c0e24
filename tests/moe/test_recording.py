"""Traces recorded from forward passes say what the routers decided, and nothing about padding."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import InputError
from crossroads.core.routed import LayerRecord, ModelOutput, RouteContext
from crossroads.models.decoder import DecoderConfig, DecoderLM
from crossroads.moe import compaction
from crossroads.moe.building import MoEFactory, MoESpec
from crossroads.moe.contract import (
    Branch,
    Dense,
    ExpertChoice,
    RoutingDecision,
    TokenChoice,
)
from crossroads.moe.diagnostics import summarise, summarise_trace
from crossroads.moe.experts import ModuleExperts
from crossroads.moe.layer import MoELayer
from crossroads.moe.recording import Recorder, kinds_of
from crossroads.moe.routers import build_router, router_names
from crossroads.moe.trace_facts import trace_facts

NONE = 255


def passed(*decisions: RoutingDecision, layer: int = 0) -> ModelOutput:
    record = LayerRecord(layer=layer, decisions=decisions, aux={}, new_state={}, flops=0.0)
    return ModelOutput(out=torch.zeros(1), records=(record,))


def decided(choice: Any, shape: tuple[int, int], n_experts: int = 4, **more: Any) -> Any:
    mask_N = more.pop("mask_N", torch.ones(shape[0] * shape[1], dtype=torch.bool))
    return RoutingDecision(choice=choice, n_experts=n_experts, shape=shape, mask_N=mask_N, **more)


def test_places_are_sorted_by_weight_and_lost_ones_marked() -> None:
    choice = TokenChoice(
        idx_NK=torch.tensor([[2, 0, 1], [3, 1, -1], [1, 0, 2]]),
        w_NK=torch.tensor([[0.2, -0.6, 0.2], [0.5, 0.5, 0.0], [0.1, 0.3, 0.6]]),
        dropped_NK=torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, 1]], dtype=torch.bool),
    )
    recorder = Recorder()
    recorder.record(passed(decided(choice, (1, 3))))
    trace = recorder.trace()
    assert trace.expert[:, 0].tolist() == [[0, 1, 2], [1, 3, NONE], [0, 1, NONE]]
    assert trace.weight[:, 0].tolist() == [
        [pytest.approx(-0.6, abs=1e-3), pytest.approx(0.2, abs=1e-3), pytest.approx(0.2, abs=1e-3)],
        [0.5, 0.5, 0.0],
        [pytest.approx(0.3, abs=1e-3), pytest.approx(0.1, abs=1e-3), 0.0],
    ]
    assert trace.dropped is not None
    assert trace.wanted is not None
    assert trace.dropped[:, 0].tolist() == [[False] * 3, [False] * 3, [False, False, True]]
    assert trace.wanted[2, 0].tolist() == [0, 1, 2]


def test_padding_leaves_no_row_and_packed_documents_are_sequences() -> None:
    choice = TokenChoice(idx_NK=torch.arange(8).reshape(8, 1) % 4, w_NK=torch.ones(8, 1))
    mask_BT = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
    doc_BT = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]])
    context = RouteContext(mask_BT=mask_BT, cond={"doc_id": doc_BT})
    recorder = Recorder()
    tokens = torch.arange(10, 18).reshape(2, 4)
    recorder.record(passed(decided(choice, (2, 4))), context, token_id_BT=tokens)
    trace = recorder.trace()
    assert trace.token_id.tolist() == [10, 11, 12, 15, 16, 17]
    assert trace.seq_ptr.tolist() == [0, 2, 3, 6]
    assert trace.pos.tolist() == [0, 1, 0, 0, 1, 2]
    assert trace.expert[:, 0, 0].tolist() == [0, 1, 2, 1, 2, 3]


def test_decoding_steps_continue_their_sequences() -> None:
    def step(ids: list[int], length: int) -> ModelOutput:
        choice = TokenChoice(idx_NK=torch.tensor(ids)[:, None], w_NK=torch.ones(len(ids), 1))
        return passed(decided(choice, (2, length)))

    recorder = Recorder()
    numbers = recorder.record(step([0, 1, 2, 3], 2), home=None)
    recorder.record(step([2, 1], 1), sequences=numbers)
    trace = recorder.trace()
    assert trace.expert[:, 0, 0].tolist() == [0, 1, 2, 2, 3, 1]
    assert trace.step.tolist() == [0, 0, 1, 0, 0, 1]
    assert trace.phase.tolist() == [0, 0, 1, 0, 0, 1]
    assert trace.pos.tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(InputError, match="sequences: expected 2 different"):
        recorder.record(step([2, 1], 1), sequences=[0, 9])


@given(seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_expert_choice_is_transposed_without_loss(seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    tok_GEC = torch.stack([torch.randperm(5, generator=made)[:3] for _ in range(8)])
    tok_GEC = tok_GEC.reshape(2, 4, 3)
    tok_GEC[torch.rand(tok_GEC.shape, generator=made) < 0.3] = -1
    w_GEC = torch.rand(tok_GEC.shape, generator=made) + 0.1
    recorder = Recorder()
    choice = ExpertChoice(tok_GEC=tok_GEC, w_GEC=w_GEC, group_size=5)
    recorder.record(passed(decided(choice, (2, 5))))
    trace = recorder.trace()
    found = {
        (n, int(e)): float(w)
        for n in range(10)
        for e, w in zip(trace.expert[n, 0], trace.weight[n, 0], strict=True)
        if e != NONE
    }
    wanted = {
        (g * 5 + int(tok_GEC[g, e, c]), e): float(w_GEC[g, e, c])
        for g in range(2)
        for e in range(4)
        for c in range(3)
        if tok_GEC[g, e, c] >= 0
    }
    assert found == pytest.approx(wanted, rel=1e-3)


def test_dense_decisions_name_no_experts_unless_approximated() -> None:
    dense = torch.tensor([[[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]]]).unsqueeze(-1)
    output = passed(decided(Dense(dispatch_GSEC=dense, combine_GSEC=dense), (1, 2), n_experts=3))
    with pytest.raises(InputError, match="approx_topk"):
        Recorder().record(output)
    recorder = Recorder(approx_topk=2)
    recorder.record(output)
    trace = recorder.trace()
    assert trace.expert[:, 0].tolist() == [[1, 2], [0, 2]]
    assert trace.rows[0]["approx_topk"] == 2


def test_branches_iterations_and_layers_are_columns_padded_to_one_shape() -> None:
    one = TokenChoice(idx_NK=torch.tensor([[1], [0]]), w_NK=torch.ones(2, 1))
    two = TokenChoice(idx_NK=torch.tensor([[4, 2], [3, 0]]), w_NK=torch.full((2, 2), 0.5))
    branches = tuple(
        Branch(name=name, choice=one, x_ND=torch.zeros(2, 3), gate_N1=torch.full((2, 1), 0.25))
        for name in ("continuous", "discrete")
    )
    logits_NE = torch.tensor([[1.0, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    looped = decided(two, (1, 2), n_experts=5, logits_NE=logits_NE)
    first = passed(decided(None, (1, 2), n_experts=2, branches=branches)).records
    second = passed(looped, looped, layer=3).records
    recorder = Recorder(kinds={3: ("ffn",) * 4 + ("null",)}, keep_logits=True)
    recorder.record(ModelOutput(out=torch.zeros(1), records=first + second))
    trace = recorder.trace()
    names = [(row["layer"], row["iteration"], row["branch"]) for row in trace.rows]
    assert names == [(0, 0, "continuous"), (0, 0, "discrete"), (3, 0, ""), (3, 1, "")]
    assert trace.rows[2]["expert_kinds"][-1] == "null"
    assert trace.expert[0].tolist() == [[1, NONE], [1, NONE], [2, 4], [2, 4]]
    assert trace.weight[0, 0, 0] == 0.25
    assert trace.logits is not None
    assert np.isneginf(trace.logits[:, :2]).all()
    assert trace.logits[0, 2].tolist() == [1, 2, 3, 4, 5]


def test_an_empty_place_of_a_small_layer_is_one_beside_a_large_layer() -> None:
    few = TokenChoice(idx_NK=torch.tensor([[7, -1]]), w_NK=torch.tensor([[1.0, 0.0]]))
    many = TokenChoice(idx_NK=torch.tensor([[299, 255]]), w_NK=torch.tensor([[0.75, 0.25]]))
    small = passed(decided(few, (1, 1), n_experts=8)).records
    large = passed(decided(many, (1, 1), n_experts=300), layer=1).records
    recorder = Recorder()
    recorder.record(ModelOutput(out=torch.zeros(1), records=small + large))
    assert recorder.trace().expert[0].tolist() == [[7, 65535], [299, 255]]


@pytest.mark.parametrize(("granularity", "rows"), [("sequence", 2), ("batch", 1)])
def test_decisions_about_sequences_are_stored_once(granularity: str, rows: int) -> None:
    choice = TokenChoice(idx_NK=torch.arange(rows)[:, None], w_NK=torch.ones(rows, 1))
    recorder = Recorder()
    recorder.record(passed(decided(choice, (2, 3), granularity=granularity)))
    trace = recorder.trace()
    assert trace.granularity == "sequence"
    assert trace.expert.shape == (2, 1, 1)
    assert trace.per_token().expert.shape == (6, 1, 1)
    continued = Recorder()
    numbers = continued.record(passed(decided(choice, (2, 3), granularity=granularity)))
    continued.record(passed(decided(choice, (2, 1), granularity=granularity)), sequences=numbers)
    assert continued.trace().expert.shape == (8, 1, 1)


def test_many_passes_are_kept_in_order_and_second_passes_left_out() -> None:
    recorder = Recorder(meta={"model": "toy"})
    for i in range(130):
        choice = TokenChoice(idx_NK=torch.tensor([[i % 4]]), w_NK=torch.ones(1, 1))
        recorder.record(passed(decided(choice, (1, 1))), domain=[i % 3])
        recorder.record(passed(decided(choice, (1, 1))), RouteContext(pass_id=1))
    trace = recorder.trace()
    assert trace.expert[:, 0, 0].tolist() == [i % 4 for i in range(130)]
    assert trace.domain is not None
    assert trace.domain.tolist() == [i % 3 for i in range(130)]
    assert trace.meta["model"] == "toy"


def test_passes_converted_together_are_those_converted_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = torch.Generator().manual_seed(0)
    traces = []
    calls = []
    for size in range(6):  # padded and whole, of two widths, ordered and not, some with losses
        mask_BT = torch.rand(2, 4, generator=rng) < 0.7 + size % 2
        lost = torch.rand(8, 2 + size % 3 // 2, generator=rng) < 0.2 if size % 3 else None
        k = 2 if lost is None else lost.shape[1]
        choice = TokenChoice(
            idx_NK=torch.rand(8, 4, generator=rng).argsort(-1)[:, :k],
            w_NK=torch.randn(8, k, generator=rng),
            dropped_NK=lost,
        )
        calls.append((decided(choice, (2, 4), mask_N=mask_BT.flatten()), mask_BT))
    for bundle in (1, 2**18):
        monkeypatch.setattr(compaction, "BUNDLE", bundle)
        recorder = Recorder()
        for made, mask_BT in calls:
            recorder.record(passed(made), RouteContext(mask_BT=mask_BT))
        traces.append(recorder.trace().arrays())
    one, other = traces
    assert one.keys() == other.keys() >= {"dropped", "wanted"}
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])
        assert array.dtype == other[name].dtype


def test_tensors_that_the_caller_fills_anew_are_copied() -> None:
    tokens, mask_BT = torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool)
    cond = {"pos": torch.zeros(1, 3, dtype=torch.int64), "doc_id": torch.zeros(1, 3)}
    choice = TokenChoice(idx_NK=torch.tensor([[0], [1], [2]]), w_NK=torch.ones(3, 1))
    recorder = Recorder()
    for i in range(3):
        tokens.fill_(i + 1)
        mask_BT[0, :i] = False
        cond["pos"].copy_(10 * i + torch.arange(3)[None])
        cond["doc_id"].fill_(i)
        context = RouteContext(mask_BT=mask_BT, cond=cond)
        recorder.record(passed(decided(choice, (1, 3))), context, token_id_BT=tokens)
    trace = recorder.trace()
    assert trace.token_id.tolist() == [1, 1, 1, 2, 2, 3]
    assert trace.seq_ptr.tolist() == [0, 3, 5, 6]
    assert trace.pos.tolist() == [0, 1, 2, 11, 12, 22]


def test_a_trace_says_what_the_model_is_and_the_recorder_knows_better() -> None:
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=32, width=16, num_layers=4, num_heads=2, hidden=16)
    spec = MoESpec(router="adamoe:n_null=2", dense_hidden=16, n_experts=4, layers="odd", shared=1)
    model = DecoderLM(config, sublayer=MoEFactory(spec, num_layers=4))
    recorder = Recorder(meta={"width": "mine"}).describe(model)
    x_BT = torch.randint(0, 32, (2, 7))
    with torch.no_grad():
        recorder.record(model(x_BT), token_id_BT=x_BT)
    trace = recorder.trace()
    layer: Any = model.blocks[1].ffn
    assert trace.rows[0]["router"] == "adamoe"
    assert trace.rows[0]["expert_kinds"] == ["ffn"] * 4 + ["null"] * 2
    one = sum(4 * p[0].numel() for p in layer.experts.parameters())
    assert trace.rows[0]["bytes_per_expert"] == one
    assert trace.rows[0]["shared_bytes"] == sum(4 * p.numel() for p in layer.shared.parameters())
    assert trace.meta["dense_layers"] == [0, 2]
    assert trace.meta["n_layers"] == 4
    assert trace.meta["bytes_per_token"] == 16 * 4
    assert trace.meta["width"] == "mine"
    assert json.loads(json.dumps(trace.meta)) == trace.meta


def test_experts_of_several_sizes_are_told_one_by_one() -> None:
    members = [torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4)]
    router = build_router("switch", 4, 2, kinds=("module",) * 2)
    layer = MoELayer(router, ModuleExperts(members, 4))
    facts, rows = trace_facts(layer)
    assert facts == {"n_layers": 1, "dense_layers": [], "width": 4, "bytes_per_token": 16}
    assert rows[0]["bytes_per_expert"] == [64, 80]
    assert trace_facts(torch.nn.Linear(2, 2)) == ({}, {})


def test_foreign_and_empty_passes_are_refused() -> None:
    choice = TokenChoice(idx_NK=torch.tensor([[0]]), w_NK=torch.ones(1, 1))
    recorder = Recorder()
    with pytest.raises(InputError, match="no forward pass was recorded"):
        recorder.trace()
    with pytest.raises(InputError, match="made no decision"):
        recorder.record(ModelOutput(out=torch.zeros(1)))
    with pytest.raises(InputError, match="expected a model's ModelOutput, got Tensor"):
        recorder.record(torch.zeros(1))  # type: ignore[arg-type]
    recorder.record(passed(decided(choice, (1, 1))))
    with pytest.raises(InputError, match="other columns than the first"):
        recorder.record(passed(decided(choice, (1, 1)), layer=5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"token_id_BT": torch.zeros(2, dtype=torch.int64)}, r"token ids: .* shape \(1, 2\)"),
        ({"token_id_BT": torch.zeros(1, 2)}, "token ids: expected integers"),
        ({"home": [0, 1]}, "home: expected one number a sequence"),
        ({"domain": []}, "domain: expected one number a sequence"),
        ({"domain": [1]}, r"domain: expected numbers from 0 to 0 .* got \[1\]"),
        ({"domain": [-1]}, "domain: expected numbers from 0 to 0"),
    ],
)
def test_facts_of_another_shape_are_refused_and_leave_no_pass(given: Any, message: str) -> None:
    choice = TokenChoice(idx_NK=torch.tensor([[0], [1]]), w_NK=torch.ones(2, 1))
    recorder = Recorder(domains=["a"])
    with pytest.raises(InputError, match=message):
        recorder.record(passed(decided(choice, (1, 2))), **given)
    with pytest.raises(InputError, match="no forward pass was recorded"):
        recorder.trace()


def test_kinds_of_another_number_of_experts_are_refused() -> None:
    choice = TokenChoice(idx_NK=torch.tensor([[0]]), w_NK=torch.ones(1, 1))
    with pytest.raises(InputError, match="kinds: layer 0 has 4 experts, got 3"):
        Recorder(kinds={0: ("ffn",) * 3}).record(passed(decided(choice, (1, 1))))
    for kinds in ([], [("ffn",) * 4]):
        with pytest.raises(InputError, match="kinds: expected a mapping"):
            Recorder(kinds=kinds)  # type: ignore[arg-type]


def test_kinds_that_were_corrected_are_those_of_what_follows() -> None:
    choice = TokenChoice(idx_NK=torch.tensor([[0]]), w_NK=torch.ones(1, 1))
    recorder = Recorder()
    recorder.record(passed(decided(choice, (1, 1))))
    recorder.kinds = {0: ("ffn", "ffn", "ffn", "null")}
    with pytest.raises(InputError, match="other columns than the first pass"):
        recorder.record(passed(decided(choice, (1, 1))))


@pytest.mark.parametrize("name", router_names())
def test_every_router_is_recorded_as_it_decided(name: str) -> None:
    torch.manual_seed(0)
    spec = MoESpec(router=name, dense_hidden=32, n_experts=4)
    layer = MoEFactory(spec, num_layers=1)(0, 16, None)
    mask_BT = torch.ones(3, 6, dtype=torch.bool)
    mask_BT[1, 4:] = False
    cond = {
        "token_id": torch.randint(0, 50, (3, 6)),
        "label": torch.tensor([0, 1, 10]),
        "null": torch.tensor([False, False, True]),
        "pos": torch.arange(6).expand(3, 6),
    }
    context = RouteContext(mask_BT=mask_BT, cond=cond)
    attn = torch.softmax(torch.randn(3, 2, 6, 6), -1)
    with torch.no_grad():
        answer = layer(torch.randn(3, 6, 16), context, attn=attn)
    kinds = layer.routers[0].kinds
    recorder = Recorder(kinds={0: kinds}, approx_topk=2)
    recorder.record(passed(*answer.decisions), context)
    trace = recorder.trace()
    assert len(trace.expert) == int(mask_BT.sum())
    decision = answer.decisions[0]
    if decision.branches or isinstance(decision.choice, Dense):
        assert trace.n_columns == max(len(decision.branches), 1)
        return
    (read,) = summarise_trace(trace)
    direct = summarise(decision, kinds)
    assert read.load == pytest.approx(direct.load)
    assert read.mean_active == pytest.approx(direct.mean_active)


def test_a_model_is_recorded_as_it_routed() -> None:
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=32, width=16, num_layers=3, num_heads=2, hidden=16)
    factory = MoEFactory(MoESpec(router="top2", dense_hidden=16, n_experts=4), num_layers=3)
    model = DecoderLM(config, sublayer=factory)
    x_BT = torch.randint(0, 32, (2, 7))
    mask_BT = torch.ones(2, 7, dtype=torch.bool)
    mask_BT[1, 5:] = False
    context = RouteContext(mask_BT=mask_BT, causal=True)
    with torch.no_grad():
        output = model(x_BT, context=context)
    recorder = Recorder(kinds=kinds_of(model))
    recorder.record(output, context, token_id_BT=x_BT)
    trace = recorder.trace()
    assert trace.expert.shape == (12, 3, 2)
    for column, record in enumerate(output.records):
        idx_NK = record.decisions[0].choice.idx_NK[mask_BT.reshape(-1)]
        assert (np.sort(trace.expert[:, column]) == np.sort(idx_NK.numpy())).all()
