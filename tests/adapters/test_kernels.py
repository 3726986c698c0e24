"""Kernels of a mix: one function and one gradient, whichever computes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crossroads.adapters.bank import ModuleBank
from crossroads.adapters.contract import Routing
from crossroads.adapters.kernels import KERNELS, Kernel, choose, mixed
from crossroads.core.errors import UsageError
from tests.adapters.toys import mix_by_hand, module_bank, rng


def sparse(rows: int, positions: int, experts: int, k: int, seed: int) -> Routing:
    draw = rng(seed)
    order = torch.rand(rows, positions, 1, experts, generator=draw).argsort(-1)
    weights = torch.rand(rows, positions, 1, k, generator=draw, dtype=torch.float64)
    return Routing(weights=weights, index=order[..., :k], normalised=False)


def alive_only(routing: Routing, bank: ModuleBank) -> Routing:
    assert routing.index is not None
    kept = routing.weights * bank.alive_E[routing.index]
    return Routing(weights=kept, index=routing.index, normalised=False)


cases = st.tuples(
    st.lists(st.integers(0, 4), min_size=1, max_size=7).filter(any),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(0, 999),
)


def gradients(
    x: Tensor, bank: ModuleBank, routing: Routing, kernel: Kernel
) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.detach().clone(), routing.weights.detach().clone()]
    parameters = [bank.a_ERI, bank.b_EOR]
    for leaf in (*leaves, *parameters):
        leaf.requires_grad_(True)
        leaf.grad = None
    inside = Routing(weights=leaves[1], index=routing.index, normalised=False)
    y = mixed(leaves[0], bank, inside, kernel)
    # Not the plain sum: its gradient is one number for all outputs.
    (y * torch.arange(1.0, y.numel() + 1).view_as(y)).sum().backward()
    found = [leaf.grad.clone() for leaf in (*leaves, *parameters) if leaf.grad is not None]
    return y.detach(), found


@given(case=cases)
def test_all_kernels_agree_in_output_and_gradients(
    case: tuple[list[int], int, int, int, int],
) -> None:
    ranks, rows, positions, k, seed = case
    bank = module_bank(ranks, seed=seed)
    routing = alive_only(sparse(rows, positions, len(ranks), min(k, len(ranks)), seed), bank)
    x = torch.randn(rows, positions, bank.inputs, generator=rng(seed), dtype=torch.float64)
    by_hand = mix_by_hand(x, bank, routing)
    reference, expected = gradients(x, bank, routing, "gather")
    torch.testing.assert_close(reference, by_hand, atol=1e-6, rtol=1e-6)
    for kernel in ("dense", "grouped", "auto"):
        y, found = gradients(x, bank, routing, kernel)  # type: ignore[arg-type]
        torch.testing.assert_close(y, reference, atol=1e-9, rtol=1e-9)
        assert len(found) == 4
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@given(case=cases)
def test_kernels_agree_in_single_precision(case: tuple[list[int], int, int, int, int]) -> None:
    ranks, rows, positions, k, seed = case
    bank = module_bank(ranks, dtype=torch.float32, inputs=32, outputs=24, seed=seed)
    routing = alive_only(sparse(rows, positions, len(ranks), min(k, len(ranks)), seed), bank)
    x = torch.randn(rows, positions, 32, generator=rng(seed))
    by_hand = mix_by_hand(x, bank, routing)
    size = mix_by_hand(x, bank, routing, sizes=True).max()
    with torch.no_grad():
        for kernel in KERNELS:
            gap = (mixed(x, bank, routing, kernel) - by_hand).abs().max()
            assert gap <= 1e-5 * size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", KERNELS)
def test_half_precision_stays_near(dtype: torch.dtype, kernel: Kernel) -> None:
    bank = module_bank([2, 3, 1], dtype=dtype, inputs=32, outputs=24)
    routing = sparse(2, 50, 3, 2, 0)
    x = torch.randn(2, 50, 32, generator=rng(0)).to(dtype)
    with torch.no_grad():
        y = mixed(x, bank, routing, kernel)
    assert y.dtype == dtype
    by_hand = mix_by_hand(x, bank, routing)
    tolerance = 8 * torch.finfo(dtype).eps  # rounded once per product and sum
    assert (y - by_hand).abs().max() <= tolerance * by_hand.abs().max()
    onto = torch.randn(2, 50, 24, generator=rng(1)).to(dtype)
    before = onto.clone()
    with torch.no_grad():
        total = mixed(x, bank, routing, kernel, onto)
    assert total.dtype == dtype
    gap = (total - (by_hand + before)).abs().max()
    assert gap <= tolerance * (by_hand + before).abs().max()


def test_the_wider_type_of_input_and_factors_is_computed_in() -> None:
    routing = sparse(1, 8, 2, 1, 0)
    x = torch.randn(1, 8, 6, generator=rng(0))
    wide = mixed(x.bfloat16(), module_bank([2, 2], dtype=torch.float32), routing)
    assert wide.dtype == torch.float32
    expected = mix_by_hand(x.bfloat16(), module_bank([2, 2], dtype=torch.float32), routing)
    torch.testing.assert_close(wide.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_sum_is_written_to_its_tensor_unless_gradients_are_recorded(
    kernel: Kernel, rank: int, recorded: bool
) -> None:
    bank = module_bank([rank, rank, 0], inputs=8, outputs=8, dtype=torch.float32)
    routing = alive_only(sparse(2, 40, 3, 2, 0), bank)
    x = torch.randn(2, 40, 8, generator=rng(1))
    onto = torch.randn(2, 40, 8, generator=rng(2))
    before = onto.clone()
    expected = before + mix_by_hand(x, bank, routing).float()
    with torch.set_grad_enabled(recorded):
        total = mixed(x, bank, routing, kernel, onto)
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-4)
    if recorded or kernel == "gather":
        assert torch.equal(onto, before)
    else:
        assert total.data_ptr() == onto.data_ptr()


def test_flat_factors_follow_a_change() -> None:
    bank = module_bank([2, 2], dtype=torch.float32)
    routing = sparse(1, 4, 2, 1, 0)
    x = torch.randn(1, 4, 6, generator=rng(1))
    for _ in range(2):
        with torch.no_grad():
            y = mixed(x, bank, routing, "dense")
            expected = mix_by_hand(x, bank, routing).float()
            torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
            bank.b_EOR.mul_(3.0)
            bank.a_ERI.data = bank.a_ERI.data + 1.0


@pytest.mark.parametrize("kernel", ["dense", "grouped"])
def test_weights_of_a_sequence_hold_for_all_its_tokens(kernel: Kernel) -> None:
    bank = module_bank([2, 2, 2])
    routing = sparse(3, 1, 3, 2, 5)
    assert routing.index is not None
    spread = Routing(
        weights=routing.weights.expand(3, 7, 1, 2),
        index=routing.index.expand(3, 7, 1, 2),
        normalised=False,
    )
    x = torch.randn(3, 7, 6, generator=rng(1), dtype=torch.float64)
    torch.testing.assert_close(
        mixed(x, bank, routing, kernel), mixed(x, bank, spread, kernel), atol=1e-12, rtol=1e-12
    )


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.numel = max(self.numel, made.numel())
        return made


@pytest.mark.parametrize("kernel", ["dense", "grouped"])
def test_nothing_has_the_size_of_tokens_times_experts_times_outputs(kernel: Kernel) -> None:
    bank = module_bank([2] * 16, inputs=64, outputs=64)
    routing = sparse(1, 128, 16, 2, 0)
    x = torch.randn(1, 128, 64, dtype=torch.float64)
    with torch.no_grad(), _Largest() as seen:
        mixed(x, bank, routing, kernel)
    assert seen.numel <= 128 * max(64 * 2, 16 * 2)  # rows of places, or of all ranks


@pytest.mark.parametrize("kernel", ["dense", "grouped", "gather"])
def test_without_weights_nothing_is_added(kernel: Kernel) -> None:
    bank = module_bank([2, 2])
    routing = Routing(
        weights=torch.zeros(1, 70, 1, 1), index=torch.zeros(1, 70, 1, 1, dtype=torch.int64)
    )
    y = mixed(torch.randn(1, 70, 6, dtype=torch.float64), bank, routing, kernel)
    assert y.shape == (1, 70, 4)
    assert not y.any()


@pytest.mark.parametrize("kernel", ["dense", "grouped", "gather"])
def test_an_empty_batch(kernel: Kernel) -> None:
    y = mixed(torch.zeros(0, 3, 6), module_bank([2, 2]), sparse(0, 3, 2, 1, 0), kernel)
    assert y.shape == (0, 3, 4)


def test_a_token_that_is_not_finite_stays_alone() -> None:
    bank = module_bank([2, 2], dtype=torch.float32)
    x = torch.randn(1, 70, 6)
    x[0, 3] = torch.nan
    for kernel in ("dense", "grouped"):
        y = mixed(x, bank, sparse(1, 70, 2, 1, 0), kernel)  # type: ignore[arg-type]
        assert y.isfinite().all(-1).sum() == 69


def test_the_choice_follows_rows_bank_and_type() -> None:
    small, large = module_bank([2] * 12), module_bank([16] * 32)
    assert choose(100_000, 2, small, torch.float32) == "dense"
    assert choose(16, 1, large, torch.float32) == "dense"
    assert choose(256, 1, large, torch.float32) == "grouped"
    assert choose(256, 1, large, torch.bfloat16) == "dense"
    assert choose(1024, 2, large, torch.bfloat16) == "dense"
    assert choose(4096, 1, large, torch.bfloat16) == "grouped"


@pytest.mark.parametrize(
    ("rows", "experts", "rank", "dtype", "faster"),
    [
        (16, 128, 8, torch.float32, "dense"),
        (64, 32, 8, torch.float32, "dense"),
        (64, 32, 16, torch.float32, "grouped"),
        (64, 128, 8, torch.float32, "grouped"),
        (256, 32, 8, torch.float32, "grouped"),
        (4096, 8, 16, torch.float32, "dense"),
        (1024, 128, 8, torch.bfloat16, "dense"),
        (4096, 32, 16, torch.bfloat16, "dense"),
        (4096, 128, 8, torch.bfloat16, "grouped"),
    ],
)
def test_the_choice_is_the_kernel_that_was_faster_for_two_experts_a_token(
    rows: int, experts: int, rank: int, dtype: torch.dtype, faster: Kernel
) -> None:
    assert choose(rows, 2, module_bank([rank] * experts), dtype) == faster


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown kernel 'groupd'; did you mean 'grouped'"):
        mixed(torch.zeros(1, 1, 6), module_bank([2]), sparse(1, 1, 1, 1, 0), "groupd")  # type: ignore[arg-type]


def test_the_choice_at_its_limits() -> None:
    large = module_bank([16] * 32)
    assert choose(32, 2, large, torch.float32) == "dense"
    assert choose(33, 2, large, torch.float32) == "grouped"
    assert choose(100_000, 2, module_bank([16] * 8), torch.float32) == "dense"
    assert choose(100_000, 2, module_bank([16] * 8 + [1]), torch.float32) == "grouped"
    assert choose(2047, 1, large, torch.bfloat16) == "dense"
    assert choose(2048, 1, large, torch.bfloat16) == "grouped"
    assert choose(4096, 2, large, torch.bfloat16) == "dense"  # 256 columns a place
    assert choose(4096, 2, module_bank([16] * 33), torch.bfloat16) == "grouped"


@pytest.mark.parametrize("part", ["a_ERI", "b_EOR", "scale_E"])
@pytest.mark.parametrize("how", ["written", "exchanged"])
def test_flat_factors_follow_every_part(part: str, how: str) -> None:
    bank = module_bank([2, 2], dtype=torch.float32)
    routing, x = sparse(1, 4, 2, 1, 0), torch.randn(1, 4, 6, generator=rng(1))
    with torch.no_grad():
        mixed(x, bank, routing, "dense")
        values = getattr(bank, part)
        if how == "written":
            values.mul_(3.0)
        else:
            values.data = 3.0 * values.data
        y = mixed(x, bank, routing, "dense")
        expected = mix_by_hand(x, bank, routing).float()
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)


def test_flat_factors_are_kept_for_one_type_of_input() -> None:
    bank = module_bank([2, 2], dtype=torch.float32)
    routing, x = sparse(1, 4, 2, 1, 0), torch.randn(1, 4, 6, generator=rng(1))
    with torch.no_grad():
        mixed(x, bank, routing, "dense")
        wide = mixed(x.double(), bank, routing, "dense")
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide, mix_by_hand(x, bank, routing), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_output_that_is_not_contiguous_is_added_to(kernel: Kernel) -> None:
    bank = module_bank([2, 2], dtype=torch.float32)
    routing, x = sparse(3, 5, 2, 1, 0), torch.randn(3, 5, 6, generator=rng(1))
    onto = torch.randn(5, 3, 4, generator=rng(2)).transpose(0, 1)
    expected = onto + mix_by_hand(x, bank, routing).float()
    with torch.no_grad():
        total = mixed(x, bank, routing, kernel, onto)
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-4)
