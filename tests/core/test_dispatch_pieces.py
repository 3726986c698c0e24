"""The pieces of dispatch: gather, one linear map per expert, combine; a LoRA bank made of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossroads.core.dispatch import combine_rows, gather_rows, grouped_linear, plan_rows
from crossroads.core.errors import InputError


def lora_bank(  # noqa: PLR0917
    x: Tensor, idx: Tensor, w: Tensor, a: Tensor, b: Tensor, multiple: int
) -> Tensor:
    """Return sum_k w[n, k] B_e A_e x[n], e = idx[n, k]."""
    plan = plan_rows(idx, len(a), multiple=multiple)
    z = grouped_linear(gather_rows(x, plan), plan, a)
    return combine_rows(grouped_linear(z, plan, b), w, plan)


def lora_case(seed: int, empty: float = 0.3) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x, a, b, w = (
        torch.randn(*shape, generator=rng, dtype=torch.float64)
        for shape in ((7, 5), (4, 2, 5), (4, 6, 2), (7, 2))
    )
    idx = torch.randint(4, (7, 2), generator=rng)
    return x, idx.masked_fill(torch.rand(7, 2, generator=rng) < empty, -1), w, a, b


@given(
    seed=st.integers(0, 1000), multiple=st.integers(1, 4), empty=st.sampled_from([0.0, 0.4, 1.0])
)
@settings(max_examples=30, deadline=None)
def test_a_lora_bank_is_the_sum_of_its_adapters(seed: int, multiple: int, empty: float) -> None:
    x, idx, w, a, b = lora_case(seed, empty)
    y = lora_bank(x, idx, w, a, b, multiple)
    wanted = torch.zeros(7, 6, dtype=torch.float64)
    for n in range(7):
        for k, expert in enumerate(idx[n].tolist()):
            if expert >= 0:
                wanted[n] += w[n, k] * (b[expert] @ a[expert] @ x[n])
    torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize("multiple", [1, 3])
def test_the_gradients_of_a_lora_bank_are_the_differences(multiple: int) -> None:
    x, idx, w, a, b = lora_case(0)
    inputs = tuple(t.requires_grad_() for t in (x, w, a, b))
    assert torch.autograd.gradcheck(lambda x, w, a, b: lora_bank(x, idx, w, a, b, multiple), inputs)


def test_the_gradients_of_a_biased_linear_are_the_differences() -> None:
    x, idx, _, a, _ = lora_case(1)
    plan = plan_rows(idx, 4)
    rows = gather_rows(x, plan).requires_grad_()
    bias = torch.linspace(-1, 1, 8, dtype=torch.float64).view(4, 2).requires_grad_()
    inputs = (rows, a.requires_grad_(), bias)
    assert torch.autograd.gradcheck(lambda x, a, bias: grouped_linear(x, plan, a, bias), inputs)


def test_rows_that_are_not_the_plans_are_refused() -> None:
    x, idx, _, a, _ = lora_case(1)
    with pytest.raises(InputError, match="gather_rows"):
        grouped_linear(x[:3], plan_rows(idx, 4), a)


@pytest.mark.parametrize("experts", [2, 9])
def test_one_experts_rows_are_a_plain_linear_whatever_the_bank(experts: int) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, generator=rng, dtype=torch.float64)
    weight = torch.randn(experts, 4, 3, generator=rng, dtype=torch.float64).requires_grad_()
    bias = torch.randn(experts, 4, generator=rng, dtype=torch.float64).requires_grad_()
    plan = plan_rows(torch.ones(5, 1, dtype=torch.int64), experts)
    y = grouped_linear(x, plan, weight, bias)
    wanted = torch.nn.functional.linear(x, weight[1], bias[1])
    torch.testing.assert_close(y, wanted)
    found = torch.autograd.grad(y.square().sum(), (weight, bias))
    torch.testing.assert_close(found, torch.autograd.grad(wanted.square().sum(), (weight, bias)))
