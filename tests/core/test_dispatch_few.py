"""Forwards of few rows, in torch and in the compiled kernel, against the sum written out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossroads.core.dispatch import few, mlp_bank, native, swiglu_bank
from tests.core.test_dispatch import swiglu_case, written_out
from tests.core.test_dispatch_native import kernels, needs_compiler

__all__ = ["kernels"]  # a fixture
DTYPES = pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)], ids=["f32", "bf16"]
)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the calls that the kernel answers."""
    calls: list[int] = []
    run = few._compiled

    def counted(*args: object, **named: object) -> Tensor:
        calls.append(1)
        return run(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(few, "_compiled", counted)
    yield calls


def far(y: Tensor, case: tuple[Tensor, ...]) -> float:
    """Return the distance from the sum in double precision, relative to its size."""
    exact = written_out(*(t.double() if t.is_floating_point() else t for t in case))
    return float((y.double() - exact).norm() / exact.norm().clamp_min(1e-30))


@given(
    seed=st.integers(0, 1000),
    tokens=st.integers(1, 40),
    places=st.integers(1, 4),
    experts=st.integers(1, 9),
    empty=st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_few_rows_are_the_weighted_sum_of_their_experts(
    seed: int, tokens: int, places: int, experts: int, empty: float
) -> None:
    case = swiglu_case(seed, tokens=tokens, places=places, experts=experts, empty=empty)
    torch.testing.assert_close(swiglu_bank(*case), written_out(*case))


@needs_compiler
@DTYPES
@given(
    seed=st.integers(0, 1000),
    tokens=st.integers(1, 40),
    places=st.integers(1, 4),
    experts=st.integers(1, 9),
    width=st.integers(1, 40),
    empty=st.sampled_from([0.0, 0.3]),
)
@settings(max_examples=40, deadline=None)
def test_the_kernel_is_the_weighted_sum_of_its_experts(  # noqa: PLR0917
    kernels: Path,
    dtype: torch.dtype,
    limit: float,
    seed: int,
    tokens: int,
    places: int,
    experts: int,
    width: int,
    empty: float,
) -> None:
    case = swiglu_case(
        seed, tokens=tokens, places=places, experts=experts, width=width, empty=empty, dtype=dtype
    )
    assert far(swiglu_bank(*case), case) <= limit


@needs_compiler
@DTYPES
def test_the_kernel_answers_for_a_handful_of_rows_an_expert(
    kernels: Path, compiled: list[int], dtype: torch.dtype, limit: float
) -> None:
    case = swiglu_case(tokens=10, empty=0.0, dtype=dtype)  # six rows an expert
    x, idx, w, gate_up, down = case
    assert far(swiglu_bank(*case), case) <= limit
    assert len(compiled) == 1
    with native.torch_only():
        assert far(swiglu_bank(*case), case) <= limit
    turned = gate_up.transpose(1, 2).contiguous().transpose(1, 2)
    assert far(swiglu_bank(x, idx, w, turned, down), case) <= limit  # not as the kernel reads it
    popular = (x.repeat(5, 1), torch.zeros(50, 1, dtype=torch.int64), torch.ones(50, 1))
    assert far(swiglu_bank(*popular, gate_up, down), (*popular, gate_up, down)) <= limit
    assert len(compiled) == 1


@needs_compiler
def test_where_gradients_are_kept_the_kernel_is_not_asked(
    kernels: Path, compiled: list[int]
) -> None:
    case = swiglu_case(tokens=4, dtype=torch.float32)
    case[0].requires_grad_()
    trained = swiglu_bank(*case)
    assert trained.requires_grad and not compiled
    with torch.inference_mode():
        torch.testing.assert_close(swiglu_bank(*case), trained.detach())
    assert compiled


@needs_compiler
def test_threads_change_nothing(kernels: Path) -> None:
    case = swiglu_case(tokens=9, width=300, hidden=500, dtype=torch.float32)  # worth a second one
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(swiglu_bank(*case))
    torch.set_num_threads(before)
    assert torch.equal(*found)


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_with_its_token(kernels: Path, value: float) -> None:
    case = swiglu_case(tokens=6, empty=0.0, dtype=torch.float32)
    case[0][2, 3] = value
    finite = swiglu_bank(*case).isfinite().all(1)
    assert finite.tolist() == [True, True, False, True, True, True]


def test_biases_of_few_rows_count_once_a_place() -> None:
    x, idx, w, _, down = swiglu_case(tokens=7)
    rng = torch.Generator().manual_seed(1)
    up = torch.randn(5, 7, 6, generator=rng, dtype=torch.float64)
    up_bias = torch.randn(5, 7, generator=rng, dtype=torch.float64)
    down_bias = torch.randn(5, 6, generator=rng, dtype=torch.float64)
    found = [
        mlp_bank(x, idx, w, up, up_bias, down, down_bias, path=path) for path in ("fused", "loop")
    ]
    torch.testing.assert_close(found[0], found[1])
