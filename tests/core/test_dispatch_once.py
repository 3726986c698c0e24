"""Second derivatives of the kernels of experts: right or refused, never silently something else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from crossroads.core.dispatch import (
    Path,
    combine_rows,
    gather_rows,
    grouped_linear,
    mlp_bank,
    plan_rows,
    swiglu_bank,
)
from crossroads.core.errors import UsageError


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IDX = torch.tensor([[0, 2], [2, 1], [0, -1]])


def penalty(bank: Callable[[Tensor, Tensor], Tensor], *, linear: bool) -> Tensor:
    """Return the gradient, by the weights of the places, of a squared gradient by the tokens."""
    x = numbers(3, 4, seed=1).requires_grad_()
    w = numbers(3, 2, seed=2).requires_grad_()
    y = bank(x, w)
    # Of a sum the gradient that comes in needs no gradient itself.
    (slope,) = torch.autograd.grad(y.sum() if linear else y.square().sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(slope.square().sum(), w)
    return found


def swiglu(path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    first, second = numbers(3, 6, 4, seed=3), numbers(3, 4, 3, seed=4)
    return lambda x, w: swiglu_bank(x, IDX, w, first, second, path=path)


def gelu(path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    first, second = numbers(3, 5, 4, seed=3), numbers(3, 4, 5, seed=4)
    return lambda x, w: mlp_bank(x, IDX, w, first, None, second, None, path=path)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("bank", [swiglu, gelu])
def test_a_gradient_penalty_through_frozen_experts_is_refused(
    bank: Callable[[Path], Callable[[Tensor, Tensor], Tensor]], linear: bool
) -> None:
    with pytest.raises(UsageError, match=r"second derivatives: .* set path='loop'"):
        penalty(bank("auto"), linear=linear)


@pytest.mark.parametrize("linear", [False, True])
def test_the_loop_has_second_derivatives(linear: bool) -> None:
    assert float(penalty(swiglu("loop"), linear=linear).norm()) > 1.0
    x, w = numbers(3, 4, seed=1).requires_grad_(), numbers(3, 2, seed=2).requires_grad_()
    assert torch.autograd.gradgradcheck(swiglu("loop"), (x, w))


@pytest.mark.parametrize("linear", [False, True])
def test_a_gradient_penalty_through_one_map_per_expert_is_refused(linear: bool) -> None:
    plan = plan_rows(IDX, 3)
    weight = numbers(3, 4, 4, seed=3)

    def bank(x: Tensor, w: Tensor) -> Tensor:
        y = torch.tanh(grouped_linear(gather_rows(x, plan), plan, weight))
        return combine_rows(y, w, plan)

    with pytest.raises(UsageError, match="second derivatives"):
        penalty(bank, linear=linear)


def test_a_graph_of_gradients_that_nobody_differentiates_is_no_error() -> None:
    x, w = numbers(3, 4, seed=1).requires_grad_(), numbers(3, 2, seed=2).requires_grad_()
    with_graph = torch.autograd.grad(swiglu("auto")(x, w).sum(), (x, w), create_graph=True)
    without = torch.autograd.grad(swiglu("auto")(x, w).sum(), (x, w))
    torch.testing.assert_close(with_graph, without, rtol=0, atol=0)


def mapped(x: Tensor, w: Tensor) -> Tensor:
    plan = plan_rows(IDX, 3)
    y = grouped_linear(gather_rows(x, plan), plan, numbers(3, 4, 4, seed=3))
    return combine_rows(y, w, plan)


@pytest.mark.parametrize("bank", [swiglu("auto"), mapped], ids=["bank", "map"])
def test_under_a_checkpoint_gradients_with_a_graph_are_as_without(
    bank: Callable[[Tensor, Tensor], Tensor],
) -> None:
    def again(x: Tensor, w: Tensor) -> Tensor:
        found: Tensor = checkpoint(bank, x, w, use_reentrant=False)
        return found

    x, w = numbers(3, 4, seed=1).requires_grad_(), numbers(3, 2, seed=2).requires_grad_()
    with_graph = torch.autograd.grad(again(x, w).sum(), (x, w), create_graph=True)
    without = torch.autograd.grad(bank(x, w).sum(), (x, w))
    torch.testing.assert_close(with_graph, without, rtol=0, atol=0)
    with pytest.raises(UsageError, match="second derivatives"):
        penalty(again, linear=True)


@pytest.mark.parametrize("multiple", [1, 3])
def test_gather_and_combine_have_second_derivatives(multiple: int) -> None:
    plan = plan_rows(IDX, 3, multiple=multiple)
    x, w = numbers(3, 4, seed=1).requires_grad_(), numbers(3, 2, seed=2).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x, w: combine_rows(torch.sin(gather_rows(x, plan)), w, plan), (x, w)
    )
