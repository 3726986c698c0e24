"""Optional kernels and threads of dispatch change speed and rounding, nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossroads.core.dispatch import native, swiglu_bank, team
from crossroads.core.native import VARIABLE
from tests.core.test_dispatch import floats, gradients, swiglu_case

COMPILER = shutil.which(os.environ.get("CC", "cc"))
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler here")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Build the kernels into a folder of the tests, and use them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(tmp_path_factory.mktemp("kernels")))
        path = native.SOURCE.build()
        native.loaded.cache_clear()
        yield path
    native.loaded.cache_clear()


@pytest.fixture
def unloaded() -> Iterator[None]:
    native.loaded.cache_clear()
    yield
    native.loaded.cache_clear()


def outputs(dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Return a bank's output and its gradients by x, w, gate_up and down."""
    case = swiglu_case(seed, tokens=70, width=24, hidden=19, dtype=dtype)
    inputs = floats(case[0], *case[2:])
    y = swiglu_bank(*case)
    return [y, *gradients(y, inputs)]


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_kernels_round_as_torch_does(kernels: Path, dtype: torch.dtype) -> None:
    limit = {torch.float32: 2e-6, torch.bfloat16: 1e-2}[dtype]
    assert native.kernels_for(torch.ones(1, dtype=dtype)) is not None
    compiled = outputs(dtype)
    with native.torch_only():
        assert native.kernels_for(torch.ones(1, dtype=dtype)) is None
        plain = outputs(dtype)
    for ours, theirs in zip(compiled, plain, strict=True):
        assert (ours - theirs).norm() <= limit * theirs.norm()
    exact = outputs(torch.float64)
    for ours, theirs, true in zip(compiled, plain, exact, strict=True):
        assert (ours.double() - true).norm() <= 1.5 * (theirs.double() - true).norm() + 1e-6


@needs_compiler
def test_the_kernel_is_silu_everywhere(kernels: Path) -> None:
    gate = torch.cat([torch.linspace(-200, 200, 4001), torch.tensor([0.0, 1e30, -1e30])])
    a, h = torch.stack([gate, torch.ones_like(gate)]).reshape(1, -1), torch.empty(1, len(gate))
    compiled = native.kernels_for(a)
    assert compiled is not None
    compiled.swiglu(a.data_ptr(), h.data_ptr(), 1, len(gate))
    wanted = torch.nn.functional.silu(gate.double()).float()
    torch.testing.assert_close(h[0], wanted, rtol=1e-5, atol=1e-30)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_kernel_hides_nothing_that_is_not_finite(
    kernels: Path, dtype: torch.dtype, value: float
) -> None:
    for column in (3, 20):  # in the gate, in the other half
        a = torch.ones(2, 32, dtype=dtype)
        a[1, column] = value
        h, dh, da = torch.empty(2, 16, dtype=dtype), torch.ones(2, 16, dtype=dtype), a.clone()
        compiled = native.kernels_for(a)
        assert compiled is not None
        compiled.swiglu(a.data_ptr(), h.data_ptr(), 2, 16)
        assert h.isfinite().sum() == 31 and not h[1, column % 16].isfinite()
        pointers = (a.data_ptr(), dh.data_ptr(), h.data_ptr(), da.data_ptr())
        compiled.swiglu_back(*pointers, 2, 16)
        assert not h[1, column % 16].isfinite() and h[0].isfinite().all()
        assert not da[1].isfinite().all() and da[0].isfinite().all()


@needs_compiler
def test_a_backward_follows_its_forward(kernels: Path) -> None:
    case = swiglu_case(tokens=70, dtype=torch.float32)
    inputs = floats(case[0], *case[2:])
    with native.torch_only():
        y = swiglu_bank(*case)
        inside = gradients(y, inputs)
        y = swiglu_bank(*case)
    for ours, theirs in zip(gradients(y, inputs), inside, strict=True):
        assert torch.equal(ours, theirs)


def test_without_a_built_file_torch_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unloaded: None
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert native.kernels_for(torch.ones(1)) is None
    assert list(tmp_path.iterdir()) == []  # looking builds nothing


@given(sizes=st.lists(st.integers(1, 100), min_size=1, max_size=20), threads=st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_blocks_are_divided_once_each_and_evenly(sizes: list[int], threads: int) -> None:
    blocks, first = [], 0
    for expert, size in enumerate(sizes):
        blocks.append((expert, first, first + size))
        first += size
    together, apart = team.divide(blocks, threads)
    assert sorted([*together, *apart]) == blocks
    shares = [0] * threads
    for _, first, last in apart:  # as threads that all work equally fast would take them
        shares[shares.index(min(shares))] += last - first
    assert max(shares) * threads <= 1.1 * sum(shares)
    assert min((last - first for _, first, last in together), default=100) >= max(
        (last - first for _, first, last in apart), default=1
    )


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if team._limits() is None:
        pytest.skip("this torch has no threads that can be set one by one")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(team, "WORTH_SHARING", 0)
    yield
    torch.set_num_threads(before)


def test_one_expert_per_thread_gives_the_same(
    two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = []
    divide = team.divide
    monkeypatch.setattr(team, "divide", lambda *a: apart.append(divide(*a)[1]) or divide(*a))
    shared = outputs(torch.float64)
    assert torch.get_num_threads() == 2
    assert [len(blocks) > 1 for blocks in apart] == [True, True]  # forward, backward
    monkeypatch.setattr(team, "WORTH_SHARING", 1 << 60)
    for ours, theirs in zip(shared, outputs(torch.float64), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_threads_run_in_the_mode_of_their_caller(
    two_threads: None, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    case = swiglu_case(tokens=70, dtype=torch.float32)
    floats(*case[3:])
    with mode():
        y = swiglu_bank(*case)
    assert not y.requires_grad
    torch.testing.assert_close(y.clone(), swiglu_bank(*case).detach())


def test_an_error_in_any_thread_reaches_the_caller(two_threads: None) -> None:
    def prepare() -> team.Run:
        def run(block: team.Block) -> None:
            raise ValueError(f"expert {block[0]}")

        return run

    with pytest.raises(ValueError, match="expert"):
        team.run_blocks([(0, 0, 5), (1, 5, 10)], prepare, 1)
    assert torch.get_num_threads() == 2


def test_a_helper_that_never_began_is_not_waited_for(
    two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Never:
        def submit(self, task: object) -> Future[None]:
            return Future()

    monkeypatch.setattr(team, "_pool", lambda size: Never())
    done: list[int] = []
    team.run_blocks([(0, 0, 5), (1, 5, 10)], lambda: lambda block: done.append(block[0]), 1)
    assert sorted(done) == [0, 1]


def test_a_thread_that_works_alone_gives_mkl_back_what_it_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_openmp: list[int] = []
    of_mkl = [7]

    def set_mkl(count: int) -> int:
        of_mkl.append(count)
        return of_mkl[-2]

    monkeypatch.setattr(team, "_limits", lambda: (of_openmp.append, set_mkl))
    with team._one_thread():
        assert of_mkl[-1] == of_openmp[-1] == 1
    assert of_mkl[-1] == 7
    assert of_openmp[-1] == torch.get_num_threads()
