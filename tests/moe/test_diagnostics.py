"""Diagnostics against their definitions, on decisions small enough to count by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import InputError
from crossroads.core.routed import LayerRecord, ModelOutput, RouteContext
from crossroads.core.trace import RoutingTrace
from crossroads.moe import diagnostics as dg
from crossroads.moe.building import MoEFactory, MoESpec
from crossroads.moe.contract import Branch, Dense, RoutingDecision, TokenChoice
from crossroads.moe.experts import FFNBank
from crossroads.moe.recording import Recorder


def decided(choice: Any, n: int, n_experts: int, **more: Any) -> RoutingDecision:
    mask_N = more.pop("mask_N", torch.ones(n, dtype=torch.bool))
    return RoutingDecision(choice=choice, n_experts=n_experts, shape=(1, n), mask_N=mask_N, **more)


def traced(decision: RoutingDecision, **more: Any) -> RoutingTrace:
    recorder = Recorder(keep_logits=decision.logits_NE is not None, **more)
    record = LayerRecord(layer=0, decisions=(decision,), aux={}, new_state={}, flops=0.0)
    recorder.record(ModelOutput(out=torch.zeros(1), records=(record,)))
    return recorder.trace()


def columns(*ids: list[int], experts: int = 4) -> RoutingTrace:
    """A trace with K = 1 and the given experts per column."""
    expert = np.array(ids, np.uint8).T[:, :, None]
    n = len(expert)
    row = {"n_experts": experts, "weights": "ones"}
    return RoutingTrace(
        expert=expert,
        weight=np.ones(expert.shape, np.float16),
        seq_ptr=np.array([0, n]),
        token_id=np.arange(n, dtype=np.int32),
        pos=np.arange(n, dtype=np.int32),
        step=np.zeros(n, np.int32),
        phase=np.zeros(n, np.uint8),
        meta={"rows": [row for _ in ids]},
    )


def test_a_summary_counts_picks_drops_and_what_really_ran() -> None:
    probs_NE = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    choice = TokenChoice(
        idx_NK=torch.tensor([[0, 1], [0, 2], [-1, -1]]),
        w_NK=torch.tensor([[0.5, 0.25], [1.0, 0.0], [0.0, 0.0]]),
        dropped_NK=torch.tensor([[False, False], [True, False], [False, False]]),
    )
    mask_N = torch.tensor([True, True, False])
    decision = decided(choice, 3, 3, probs_NE=probs_NE, mask_N=mask_N)
    found = dg.summarise(decision, kinds=("ffn", "ffn", "null"))
    assert found.load == (0.5, 0.25, 0.25)
    assert found.cv == pytest.approx(np.std([1.5, 0.75, 0.75]))
    assert found.max_over_mean == 1.5
    assert found.dead == ()
    assert found.dropped == 0.25
    assert found.mean_active == 1.0  # token 0 runs two, token 1 lost one and picked a null
    assert found.entropy == pytest.approx(1.5 * np.log(2) / 2)
    assert found.margin == pytest.approx((0.25 + 1.0) / 2)


@given(seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_a_trace_gives_the_figures_of_its_decision(seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    logits_NE = torch.randn(12, 5, generator=made).half().float()
    probs_NE = logits_NE.softmax(-1)
    w_NK, idx_NK = probs_NE.topk(2)
    lost = torch.rand(12, 2, generator=made) < 0.2
    decision = decided(
        TokenChoice(idx_NK=idx_NK, w_NK=w_NK, dropped_NK=lost),
        12,
        5,
        logits_NE=logits_NE,
        probs_NE=probs_NE,
    )
    kinds = ("ffn",) * 4 + ("null",)
    direct = dg.summarise(decision, kinds)
    (read,) = dg.summarise_trace(traced(decision, kinds={0: kinds}))
    for name in ("load", "cv", "max_over_mean", "dropped", "mean_active", "entropy", "margin"):
        assert getattr(read, name) == pytest.approx(getattr(direct, name), abs=1e-5)
    assert read.dead == direct.dead


def test_dense_decisions_branches_and_sequences_have_figures_too() -> None:
    combine = torch.tensor([[[0.75, 0.25], [0.25, 0.75]]]).unsqueeze(-1)
    dense = dg.summarise(decided(Dense(dispatch_GSEC=combine, combine_GSEC=combine), 2, 2))
    assert dense.load == (0.5, 0.5)
    assert dense.mean_active == 2.0
    one = TokenChoice(idx_NK=torch.tensor([[0], [0]]), w_NK=torch.ones(2, 1))
    two = TokenChoice(idx_NK=torch.tensor([[1], [0]]), w_NK=torch.ones(2, 1))
    branches = tuple(
        Branch(name=str(c), choice=c, x_ND=torch.zeros(2, 1), gate_N1=torch.ones(2, 1))
        for c in (one, two)
    )
    assert dg.summarise(decided(None, 2, 2, branches=branches)).load == (0.75, 0.25)
    whole = TokenChoice(idx_NK=torch.tensor([[1]]), w_NK=torch.ones(1, 1))
    assert dg.summarise(decided(whole, 4, 2, granularity="sequence")).load == (0.0, 1.0)


def test_consistency_counts_switches_overlap_and_places() -> None:
    def two(ids: list[list[int]]) -> RoutingTrace:
        w_NK = torch.tensor([[0.6, 0.4]] * len(ids))
        return traced(decided(TokenChoice(idx_NK=torch.tensor(ids), w_NK=w_NK), len(ids), 4))

    one = two([[0, 1], [2, 3], [0, 3]])
    other = two([[0, 1], [3, 2], [1, 2]])
    found = dg.consistency(one, other)
    assert found.switched == (pytest.approx(2 / 3),)
    assert found.overlap == (pytest.approx(2 / 3),)
    assert found.same_place == (pytest.approx(2 / 6),)
    assert dg.consistency(one, one) == dg.Consistency(
        switched=(0.0,), overlap=(1.0,), same_place=(1.0,)
    )
    np.testing.assert_allclose(dg.saturation([other, one]), [[2 / 3], [1.0]])
    with pytest.raises(InputError, match="same batch"):
        dg.consistency(one, two([[0, 1]]))
    with pytest.raises(InputError, match="checkpoints"):
        dg.saturation([])


def test_layer_agreement_ignores_the_names_of_experts() -> None:
    first = [0, 0, 1, 1, 2, 2, 3, 3]
    renamed = [(e + 1) % 4 for e in first]
    crossed = [0, 1, 2, 3, 0, 1, 2, 3]
    trace = columns(first, renamed, crossed)
    assert dg.layer_agreement(trace, 0, 1) == dg.Agreement(matched=1.0, nmi=pytest.approx(1.0))
    weak = dg.layer_agreement(trace, 0, 2)
    assert weak.matched == 0.5
    assert weak.nmi < 0.9
    with pytest.raises(InputError, match="no row has an expert"):
        dg.layer_agreement(columns([255], [0]), 0, 1)


def test_specialisation_is_one_for_a_map_and_near_zero_for_chance() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 50, 400)
    by_label = columns((labels % 4).tolist())
    by_chance = columns(rng.integers(0, 4, 400).tolist())
    assert dg.specialisation(by_label, 0, labels).corrected == pytest.approx(1.0)
    chance = dg.specialisation(by_chance, 0, labels)
    assert abs(chance.corrected) < 0.05
    assert chance.nmi > 0.05  # what the correction takes out
    assert dg.specialisation(columns([2] * 9), 0).corrected == 0.0
    with pytest.raises(InputError, match="labels"):
        dg.specialisation(by_chance, 0, labels[:3])
    with pytest.raises(InputError, match="permutations"):
        dg.specialisation(by_chance, 0, permutations=0)


def test_labels_must_be_numbers_and_tokens_known() -> None:
    trace = columns([0, 1, 2])
    with pytest.raises(InputError, match="labels: expected integers, got float64"):
        dg.specialisation(trace, 0, np.array([0.1, 0.2, 0.3]))
    unknown = replace(trace, token_id=np.full(3, -1, np.int32))
    with pytest.raises(InputError, match="does not know its tokens"):
        dg.specialisation(unknown, 0)
    assert dg.specialisation(unknown, 0, np.array([7, 8, 9])).nmi == pytest.approx(1.0)


@pytest.mark.parametrize("column", [-1, 2])
def test_a_column_that_is_not_there_is_refused(column: int) -> None:
    trace = columns([0, 1], [1, 0])
    with pytest.raises(InputError, match=f"column: the trace has 0 to 1, got {column}"):
        dg.specialisation(trace, column)
    with pytest.raises(InputError, match="column: the trace has 0 to 1"):
        dg.layer_agreement(trace, 0, column)


def test_a_model_without_experts_has_no_best_one() -> None:
    with pytest.raises(InputError, match="no routed layer"):
        dg.drop_top1_sensitivity(torch.nn.Linear(2, 2), lambda: 0.0)


def test_identical_experts_are_fully_redundant_and_opposite_ones_are_not() -> None:
    torch.manual_seed(0)
    bank = FFNBank(6, 8, ("ffn",) * 3 + ("null",), identical=True)
    x_ND = torch.randn(20, 6)
    assert dg.output_redundancy(bank, x_ND) == pytest.approx(1.0)
    assert dg.weight_redundancy(bank) == pytest.approx(1.0)
    with torch.no_grad():
        bank.down[1] *= -1
    assert dg.output_redundancy(bank, x_ND) == pytest.approx(-1 / 3, abs=1e-6)
    assert dg.mean_pairwise_cosine(torch.eye(4)) == pytest.approx(0.0)
    assert dg.output_redundancy(FFNBank(6, 8, 1), x_ND) == dg.mean_pairwise_cosine(x_ND[:1]) == 0.0


def test_without_best_closes_the_first_choice_and_nothing_else() -> None:
    torch.manual_seed(0)
    spec = MoESpec(router="top2", dense_hidden=16, n_experts=4)
    layer = MoEFactory(spec, num_layers=1)(0, 8, None)
    x_BTD = torch.randn(2, 5, 8)
    context = RouteContext()
    before = layer(x_BTD, context).decisions[0].choice.idx_NK
    with dg.without_best(layer):
        closed = layer(x_BTD, context).decisions[0].choice.idx_NK
        barred = replace(context, allow=torch.tensor([[True, True, True, False]] * 2))
        narrowed = layer(x_BTD, barred).decisions[0].choice.idx_NK
    assert torch.equal(closed[:, 0], before[:, 1])
    assert not (closed == before[:, :1]).any()
    assert not (narrowed == 3).any()
    assert torch.equal(layer(x_BTD, context).decisions[0].choice.idx_NK, before)

    every = replace(context, allow=torch.tensor([True, True, True, False]))
    token = replace(context, allow=torch.tensor([True, True, True, False]).expand(2, 5, 4))
    with dg.without_best(layer):
        for barred in (every, token):
            assert torch.equal(layer(x_BTD, barred).decisions[0].choice.idx_NK, narrowed)

    def size() -> float:
        return float(layer(x_BTD, context).delta.detach().norm())

    norms = dg.drop_top1_sensitivity(layer, size)
    assert norms.plain != norms.without_best
