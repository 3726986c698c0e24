"""The three forms of a decision say the same where nothing is lost, and refuse elsewhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossroads.core.errors import InputError
from crossroads.moe.contract import Dense, ExpertChoice, TokenChoice
from crossroads.moe.conversions import (
    dense_to_expert_choice,
    executed,
    expert_choice_to_dense,
    expert_choice_to_token_choice,
    to_token_choice,
    token_choice_to_dense,
    token_choice_to_expert_choice,
)
from crossroads.moe.execution import combine
from crossroads.moe.experts import FFNBank

E, D = 4, 3
FEW = settings(max_examples=30, deadline=None)


@st.composite
def token_choices(draw: st.DrawFn) -> tuple[TokenChoice, int]:
    """Distinct experts per token, empty and dropped places, and the number of groups."""
    groups, size, places = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, E)))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    n = groups * size
    idx_NK = torch.rand(n, E, generator=gen).argsort(1)[:, :places]
    idx_NK = torch.where(torch.rand(n, places, generator=gen) < 0.2, -1, idx_NK)
    dropped = torch.rand(n, places, generator=gen) < 0.2 if draw(st.booleans()) else None
    w_NK = torch.randn(n, places, generator=gen)
    return TokenChoice(idx_NK=idx_NK, w_NK=w_NK, dropped_NK=dropped), groups


@st.composite
def expert_choices(draw: st.DrawFn) -> ExpertChoice:
    groups, size = draw(st.tuples(st.integers(1, 3), st.integers(1, 6)))
    slots = draw(st.integers(1, size))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    tok_GEC = torch.rand(groups, E, size, generator=gen).argsort(2)[:, :, :slots]
    tok_GEC = torch.where(torch.rand(tok_GEC.shape, generator=gen) < 0.2, -1, tok_GEC)
    w_GEC = torch.where(tok_GEC >= 0, torch.randn(tok_GEC.shape, generator=gen), 0.0)
    return ExpertChoice(tok_GEC=tok_GEC, w_GEC=w_GEC, group_size=size)


def pairs(choice: TokenChoice) -> set[tuple[int, int, float]]:
    rows, places = choice.live_NK.nonzero(as_tuple=True)
    return {
        (int(n), int(choice.idx_NK[n, k]), float(choice.w_NK[n, k]))
        for n, k in zip(rows, places, strict=True)
    }


def bank_and_tokens(n: int) -> tuple[FFNBank, Tensor]:
    torch.manual_seed(0)
    return FFNBank(D, 5, E), torch.randn(n, D)


@FEW
@given(token_choices())
def test_a_token_choice_survives_the_way_over_experts_and_dense(
    case: tuple[TokenChoice, int],
) -> None:
    choice, groups = case
    by_expert = token_choice_to_expert_choice(choice, E, groups)
    dense = token_choice_to_dense(choice, E, groups)
    assert pairs(expert_choice_to_token_choice(by_expert)) == pairs(choice)
    assert pairs(to_token_choice(dense)) == pairs(choice)
    experts, x_ND = bank_and_tokens(len(choice.idx_NK))
    expected = combine(experts, x_ND, choice)
    for form in (by_expert, dense):
        torch.testing.assert_close(combine(experts, x_ND, form), expected, atol=1e-5, rtol=1e-5)


@FEW
@given(expert_choices())
def test_an_expert_choice_survives_the_way_over_dense_exactly(choice: ExpertChoice) -> None:
    dense = expert_choice_to_dense(choice)
    back = dense_to_expert_choice(dense)
    assert torch.equal(back.tok_GEC, choice.tok_GEC)
    assert torch.equal(torch.where(back.tok_GEC >= 0, back.w_GEC, 0.0), choice.w_GEC)
    experts, x_ND = bank_and_tokens(len(choice.tok_GEC) * choice.group_size)
    expected = combine(experts, x_ND, choice)
    for form in (dense, expert_choice_to_token_choice(choice)):
        torch.testing.assert_close(combine(experts, x_ND, form), expected, atol=1e-5, rtol=1e-5)


def test_places_come_by_descending_size_of_weight_with_ties_to_the_lower_expert() -> None:
    choice = ExpertChoice(
        tok_GEC=torch.tensor([[[0], [0], [0], [-1]]]),
        w_GEC=torch.tensor([[[0.2], [-0.9], [0.2], [0.0]]]),
        group_size=1,
    )
    assert expert_choice_to_token_choice(choice).idx_NK.tolist() == [[1, 0, 2]]


def slot(dispatch: list[float], combine_: list[float]) -> Dense:
    """One slot of one expert over two tokens."""
    return Dense(
        dispatch_GSEC=torch.tensor(dispatch).reshape(1, 2, 1, 1),
        combine_GSEC=torch.tensor(combine_).reshape(1, 2, 1, 1),
    )


@pytest.mark.parametrize(
    "dense",
    [slot([0.5, 0.5], [1, 0]), slot([1, 1], [1, 1]), slot([2, 0], [1, 0]), slot([1, 0], [0, 1])],
    ids=["mixed", "two tokens", "scaled", "gives to a token it did not take"],
)
def test_what_no_sparse_decision_can_say_is_refused(dense: Dense) -> None:
    with pytest.raises(InputError, match="a slot mixes several tokens"):
        to_token_choice(dense)


def test_null_dropped_and_empty_places_do_not_run() -> None:
    choice = TokenChoice(
        idx_NK=torch.tensor([[0, 2], [1, -1], [2, 0]]),
        w_NK=torch.ones(3, 2),
        dropped_NK=torch.tensor([[False, False], [True, False], [False, False]]),
    )
    assert executed(choice, ("ffn", "ffn", "null")).tolist() == [[0, -1], [-1, -1], [-1, 0]]
