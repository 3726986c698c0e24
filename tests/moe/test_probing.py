"""Figures of what a routed model did, on decisions small enough to count by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from crossroads.core.errors import InputError
from crossroads.core.routed import LayerRecord
from crossroads.moe.contract import Branch, Dense, RoutingDecision, TokenChoice
from crossroads.moe.probing import figures, first_experts, load_table, overlap, probe

FFN = ("ffn",) * 4


def record(choice: Any, *, mask: list[bool], probs: torch.Tensor | None = None) -> LayerRecord:
    made = RoutingDecision(
        choice=choice,
        n_experts=4,
        shape=(1, len(mask)),
        mask_N=torch.tensor(mask),
        probs_NE=probs,
    )
    return LayerRecord(layer=1, decisions=(made,), aux={}, new_state={}, flops=0.0)


def chosen(idx: list[list[int]], **more: Any) -> TokenChoice:
    idx_NK = torch.tensor(idx)
    return TokenChoice(idx_NK=idx_NK, w_NK=torch.ones(idx_NK.shape), **more)


def test_loads_and_counts_of_a_token_choice_leave_padding_out() -> None:
    choice = chosen([[0, 1], [0, -1], [2, 0], [3, 3]])
    (found,) = probe([record(choice, mask=[True, True, True, False])], [FFN])
    assert found.summary.load == pytest.approx([0.6, 0.2, 0.2, 0.0])
    assert found.experts_N.tolist() == [2, 1, 2]
    assert found.summary.mean_active == pytest.approx(5 / 3)
    assert found.top1_N.tolist() == [0, 0, 0]
    assert found.summary.max_over_mean == pytest.approx(2.4)


def test_null_experts_are_no_load_and_no_imbalance() -> None:
    choice = chosen([[0, 3], [1, 2]])
    kinds = ("ffn", "ffn", "null", "null")
    (found,) = probe([record(choice, mask=[True, True])], [kinds])
    assert found.load_cv == 0
    assert found.true_load.tolist() == [0.5, 0.5]
    assert found.experts_N.tolist() == [1, 1]


def test_the_table_of_labels_has_true_experts_only() -> None:
    choice = chosen([[0, 3], [1, 2], [1, 3], [2, 3]])
    kinds = ("ffn", "ffn", "null", "null")
    (found,) = probe([record(choice, mask=[True] * 4)], [kinds])
    table = load_table(found, np.array([5, 5, 7, 7]))
    assert table.tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_dropped_places_are_counted_and_not_executed() -> None:
    dropped = torch.tensor([[False], [True], [False], [True]])
    choice = chosen([[0], [0], [1], [1]], dropped_NK=dropped)
    (found,) = probe([record(choice, mask=[True] * 4)], [FFN])
    assert found.summary.dropped == 0.5
    assert found.top1_N.tolist() == [0, -1, 1, -1]


def test_the_first_expert_of_a_soft_mixture_gives_most() -> None:
    combine = torch.zeros(1, 2, 4, 3)
    combine[0, 0, 2] = 0.2
    combine[0, 0, 1, 0] = 0.5
    combine[0, 1, 3, 1] = -0.9
    choice = Dense(dispatch_GSEC=torch.rand(1, 2, 4, 3), combine_GSEC=combine)
    (found,) = probe([record(choice, mask=[True] * 2)], [FFN])
    assert found.top1_N.tolist() == [2, 3]


def test_branches_add_up_by_their_gates() -> None:
    x_ND = torch.zeros(2, 1)
    gate_N1 = torch.tensor([[0.9], [0.1]])
    made = RoutingDecision(
        choice=None,
        n_experts=4,
        shape=(1, 2),
        mask_N=torch.tensor([True, True]),
        branches=(
            Branch(name="a", choice=chosen([[0], [0]]), x_ND=x_ND, gate_N1=gate_N1),
            Branch(name="b", choice=chosen([[3], [3]]), x_ND=x_ND, gate_N1=1 - gate_N1),
        ),
    )
    assert first_experts(made, FFN).tolist() == [0, 3]


def test_entropy_is_that_of_real_tokens() -> None:
    probs = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.25] * 4])
    choice = chosen([[0], [0], [0]])
    (found,) = probe([record(choice, mask=[True, True, False], probs=probs)], [FFN])
    assert found.summary.entropy == pytest.approx(np.log(4) / 2)


def test_specialisation_and_agreement_are_one_for_experts_that_follow_the_label() -> None:
    first = record(chosen([[0], [0], [1], [1]]), mask=[True] * 4)
    second = record(chosen([[3], [3], [2], [2]]), mask=[True] * 4)
    probes = probe([first, second], [FFN, FFN])
    found = figures(probes, np.array([7, 7, 8, 8]))
    assert found["specialisation"] == pytest.approx(1)
    assert found["agreement"] == pytest.approx(1)
    assert figures(probes, np.array([7, 8, 7, 8]))["specialisation"] == pytest.approx(0, abs=1e-9)
    assert load_table(probes[0], np.array([7, 7, 8, 8])).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]


def test_overlap_is_the_share_of_tokens_with_the_same_first_expert() -> None:
    first = probe([record(chosen([[0], [1], [2], [3]]), mask=[True] * 4)], [FFN])
    second = probe([record(chosen([[0], [1], [3], [2]]), mask=[True] * 4)], [FFN])
    assert overlap(first, second) == 0.5


def test_labels_of_other_tokens_are_refused() -> None:
    probes = probe([record(chosen([[0], [1]]), mask=[True, True])], [FFN])
    with pytest.raises(InputError, match="expected one per real token"):
        figures(probes, np.array([1]))
