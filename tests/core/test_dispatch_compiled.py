"""Forwards of the compiled kernel against the sum written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from crossroads.core.dispatch import banks, native, swiglu_bank, team
from crossroads.core.dispatch import compiled as compiled_module
from crossroads.core.errors import InputError
from tests.core.test_dispatch import swiglu_case, written_out
from tests.core.test_dispatch_native import kernels, needs_compiler

__all__ = ["kernels"]  # a fixture
DTYPES = pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["f32", "bf16"]
)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the calls that the kernel answers."""
    calls: list[int] = []
    run = compiled_module.compiled_bank

    def counted(*args: object) -> Tensor | None:
        y_ND = run(*args)  # type: ignore[arg-type]
        if y_ND is not None:
            calls.append(1)
        return y_ND

    monkeypatch.setattr(banks, "compiled_bank", counted)
    yield calls


def far(y: Tensor, case: tuple[Tensor, ...]) -> float:
    """Return the distance from the sum in double precision over that sum's size."""
    x, idx, w, gate_up, down = (t.double() if t.is_floating_point() else t for t in case)
    wanted = written_out(x, idx, w, gate_up, down)
    return float((y.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


def off(y: Tensor, case: tuple[Tensor, ...]) -> float:
    """Return the distance from the sum in double precision, over the size of what is summed."""
    x, idx, w, gate_up, down = (t.double() if t.is_floating_point() else t for t in case)
    size = y.new_zeros(y.shape, dtype=torch.float64)
    for n, k in torch.cartesian_prod(*(torch.arange(length) for length in idx.shape)).tolist():
        if idx[n, k] >= 0:
            gate, up = (gate_up[idx[n, k]].abs() @ x[n].abs()).chunk(2)
            size[n] += w[n, k].abs() * (down[idx[n, k]].abs() @ (gate * up))
    return float((y.double() - written_out(x, idx, w, gate_up, down)).norm() / size.norm())


@needs_compiler
@DTYPES
@given(
    seed=st.integers(0, 1000),
    tokens=st.integers(1, 40),
    places=st.integers(1, 4),
    experts=st.integers(1, 9),
    width=st.integers(1, 40),
    out=st.integers(1, 40),
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
    out: int,
) -> None:
    sizes = {"tokens": tokens, "places": places, "experts": experts, "width": width, "out": out}
    case = swiglu_case(seed, **sizes, empty=0.0, dtype=dtype)
    assert off(swiglu_bank(*case), case) <= limit
    case = swiglu_case(seed, **sizes, empty=0.3, dtype=dtype)
    case[1][0, 0] = 0  # not all are empty
    assert off(swiglu_bank(*case), case) <= limit


@needs_compiler
@DTYPES
def test_the_kernel_answers_for_weights_that_lie_as_it_reads_them(
    kernels: Path, compiled: list[int], dtype: torch.dtype, limit: float
) -> None:
    case = swiglu_case(tokens=10, empty=0.0, dtype=dtype)  # six rows an expert
    x, idx, w, gate_up, down = case
    assert far(swiglu_bank(*case), case) <= limit
    assert len(compiled) == 1
    with native.torch_only():
        assert far(swiglu_bank(*case), case) <= limit
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (gate_up, down)]
    for weights in [(turned[0], down), (gate_up, turned[1])]:
        assert far(swiglu_bank(x, idx, w, *weights), case) <= limit
    assert len(compiled) == 1


@needs_compiler
@DTYPES
@pytest.mark.parametrize("has_instructions", [True, False])
def test_instructions_for_half_precision_take_a_popular_expert(  # noqa: PLR0917
    kernels: Path,
    compiled: list[int],
    monkeypatch: pytest.MonkeyPatch,
    has_instructions: bool,
    dtype: torch.dtype,
    limit: float,
) -> None:
    monkeypatch.setattr(compiled_module, "compiles_per_count", lambda dtype: has_instructions)
    x, _, _, gate_up, down = swiglu_case(tokens=50, dtype=dtype)
    case = (x, torch.zeros(50, 1, dtype=torch.int64), torch.ones(50, 1), gate_up, down)
    assert far(swiglu_bank(*case), case) <= limit
    assert len(compiled) == (not has_instructions)


@needs_compiler
@pytest.mark.parametrize(("places", "calls"), [(80, 1), (85, 0)])  # 16 for each of five experts
def test_instructions_for_half_precision_take_many_rows(
    kernels: Path,
    compiled: list[int],
    monkeypatch: pytest.MonkeyPatch,
    places: int,
    calls: int,
) -> None:
    monkeypatch.setattr(compiled_module, "compiles_per_count", lambda dtype: True)
    x, _, _, gate_up, down = swiglu_case(tokens=places, dtype=torch.bfloat16)
    idx = torch.arange(places).unsqueeze(1) % 5
    case = (x, idx, torch.ones(places, 1), gate_up, down)
    assert far(swiglu_bank(*case), case) <= 2e-2
    assert len(compiled) == calls


@needs_compiler
@DTYPES
@pytest.mark.parametrize("rows", [1, 4, 5, 8, 9, 16, 17, 33, 131])
@pytest.mark.parametrize(("hidden", "out"), [(257, 3), (523, 300), (6, 46)])
def test_any_count_of_rows_and_weights_fits_the_tiles(  # noqa: PLR0917
    kernels: Path, dtype: torch.dtype, limit: float, rows: int, hidden: int, out: int
) -> None:
    sizes = {"tokens": rows, "places": 1, "experts": 1, "width": 301, "hidden": hidden, "out": out}
    case = swiglu_case(**sizes, empty=0.0, dtype=dtype)
    assert far(swiglu_bank(*case), case) <= limit


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
def test_threads_change_nothing(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = swiglu_case(tokens=9, width=300, hidden=500, dtype=torch.float32)  # worth a second one
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(swiglu_bank(*case))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@needs_compiler
@DTYPES
def test_tokens_and_weights_lie_in_memory_as_they_like(
    kernels: Path, compiled: list[int], dtype: torch.dtype, limit: float
) -> None:
    x, idx, w, gate_up, down = case = swiglu_case(tokens=6, out=5, dtype=dtype)
    wide = torch.stack([x, x], 1).reshape(6, -1)[:, : x.shape[1]]
    given = (wide, idx.t().contiguous().t(), torch.stack([w, w], 2).float()[..., 0])
    assert not any(tensor.is_contiguous() for tensor in given)
    assert far(swiglu_bank(*given, gate_up, down), case) <= limit
    assert len(compiled) == 1


class Wrapped(Tensor):
    """A subclass, whose memory is its own business."""


@needs_compiler
@pytest.mark.parametrize("which", [0, 2, 3, 4])
@pytest.mark.parametrize(
    "change", [lambda t: t.as_subclass(Wrapped), lambda t: torch._neg_view(t.neg())]
)
def test_what_is_more_than_its_numbers_is_left_to_torch(
    kernels: Path, which: int, change: Callable[[Tensor], Tensor]
) -> None:
    case = swiglu_case(tokens=5, dtype=torch.float32)
    given = list(case)
    given[which] = change(case[which])
    found = swiglu_bank(*given)  # type: ignore[arg-type]
    torch.testing.assert_close(found.as_subclass(Tensor), swiglu_bank(*case))


@needs_compiler
@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore::DeprecationWarning")
def test_transforms_of_functions_do_not_meet_the_kernel(kernels: Path) -> None:
    x, idx, w, gate_up, down = swiglu_case(tokens=5, dtype=torch.float32)
    found = torch.func.vmap(lambda each: swiglu_bank(x, idx, each, gate_up, down))(
        torch.stack([w, 2 * w])
    )
    torch.testing.assert_close(found[1], 2 * swiglu_bank(x, idx, w, gate_up, down))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError):
        swiglu_bank(forward_ad.make_dual(x, x), idx, w, gate_up, down)


@needs_compiler
@pytest.mark.parametrize("nothing", ["width", "hidden", "out"])
def test_a_size_of_zero_is_left_to_torch(kernels: Path, compiled: list[int], nothing: str) -> None:
    case = swiglu_case(**{"width": 3, "hidden": 3, "out": 3, nothing: 0}, dtype=torch.float32)
    assert torch.equal(swiglu_bank(*case), torch.zeros(23, case[4].shape[1]))
    assert not compiled


@needs_compiler
def test_long_sums_round_as_little_as_those_of_torch(kernels: Path, compiled: list[int]) -> None:
    x, idx, w, gate_up, down = swiglu_case(
        tokens=40, places=1, experts=1, width=8192, hidden=2, empty=0.0, dtype=torch.float32
    )
    case = (x.abs(), idx, w, gate_up.abs(), down)
    assert far(swiglu_bank(*case), case) <= 1e-6
    assert len(compiled) == 1


@needs_compiler
def test_who_follows_operations_sees_them(kernels: Path, compiled: list[int]) -> None:
    case = swiglu_case(tokens=40, empty=0.0, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        swiglu_bank(*case)
    per_row = 2 * (case[3][0].numel() + case[4][0].numel())
    assert counter.get_total_flops() == case[1].numel() * per_row
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(Exception, match="local_scalar"):
        swiglu_bank(*case)
    assert not compiled


@needs_compiler
def test_another_default_device_changes_nothing(kernels: Path) -> None:
    case = swiglu_case(tokens=5, dtype=torch.float32)
    wanted = swiglu_bank(*case)
    with torch.device("meta"):
        torch.testing.assert_close(swiglu_bank(*case), wanted)


@needs_compiler
@pytest.mark.parametrize("expert", [-2, 5])
def test_experts_that_are_not_there_are_refused(kernels: Path, expert: int) -> None:
    case = swiglu_case(tokens=5, dtype=torch.float32)
    case[1][2, 1] = expert
    with pytest.raises(InputError, match=r"idx must lie in \[-1, 5\).*" + str(expert)):
        swiglu_bank(*case)


@needs_compiler
def test_what_the_kernel_cannot_sort_is_left_to_torch(kernels: Path, compiled: list[int]) -> None:
    x, idx, w, gate_up, down = swiglu_case(tokens=4, dtype=torch.float32)
    nobody = (x, idx[:, :0], w[:, :0], gate_up, down)
    torch.testing.assert_close(swiglu_bank(*nobody), written_out(*nobody))
    with pytest.raises(InputError, match="int64"):
        swiglu_bank(x, idx.int(), w, gate_up, down)
    assert not compiled


@needs_compiler
@DTYPES
def test_what_threads_share_is_theirs_in_single_precision(
    kernels: Path,
    compiled: list[int],
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    limit: float,
) -> None:
    monkeypatch.setattr(compiled_module, "compiles_per_count", lambda dtype: False)
    monkeypatch.setattr(team, "is_shared", lambda multiply_adds: True)
    case = swiglu_case(tokens=50, dtype=dtype)
    assert far(swiglu_bank(*case), case) <= limit
    assert len(compiled) == (dtype == torch.bfloat16)


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_with_its_token(kernels: Path, value: float) -> None:
    case = swiglu_case(tokens=6, empty=0.0, dtype=torch.float32)
    case[0][2, 3] = value
    finite = swiglu_bank(*case).isfinite().all(1)
    assert finite.tolist() == [True, True, False, True, True, True]
