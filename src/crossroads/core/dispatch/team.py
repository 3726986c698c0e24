"""One expert per thread: each thread runs whole experts instead of a slice of every product.

Splitting every GEMM over the threads makes all of them wait for each other two or more times per
expert, and leaves what lies between the GEMMs to one. Here a small pool of threads takes experts,
largest first, and each runs its own with one thread per operation. Experts so large that a thread
would be left waiting are run by all threads together before. The way changes rounding only.

It needs OpenMP's per-thread settings, and is left out where the process does not offer them.
"""

from __future__ import annotations

import ctypes
import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

Block = tuple[int, int, int]  # expert, first row, row past the last
Run = Callable[[Block], None]
WORTH_SHARING = 200_000_000  # multiply-adds; below, handing over costs more than it saves
_UNEVEN = 1.1  # the longest share over the mean that is still accepted


def run_blocks(blocks: Sequence[Block], prepare: Callable[[], Run], multiply_adds: int) -> None:
    """Run every block once. Each thread calls ``prepare`` for a run with buffers of its own."""
    threads = torch.get_num_threads()
    together, apart = list(blocks), list[Block]()
    if is_shared(multiply_adds):
        together, apart = divide(blocks, threads)
    run = prepare()
    for block in together:
        run(block)
    if apart:
        _run_apart(apart, run, prepare, threads)


def is_shared(multiply_adds: int) -> bool:
    """Return whether so much work is shared among threads expert by expert."""
    is_worth_it = torch.get_num_threads() > 1 and multiply_adds >= WORTH_SHARING
    return is_worth_it and _limits() is not None


def divide(blocks: Sequence[Block], threads: int) -> tuple[list[Block], list[Block]]:
    """Return the blocks for all threads together, and those for one each, largest first.

    The largest join the former until the rest, dealt out largest first, is even within 10 %.
    """
    apart = sorted(blocks, key=lambda block: block[1] - block[2])
    together: list[Block] = []
    while apart:
        shares = [0] * threads
        for _, first, last in apart:
            heapq.heapreplace(shares, shares[0] + last - first)
        if max(shares) * threads <= _UNEVEN * sum(shares):
            break
        together.append(apart.pop(0))
    return together, apart


def _run_apart(blocks: Sequence[Block], run: Run, prepare: Callable[[], Run], threads: int) -> None:
    waiting = iter(blocks)  # shared: each block is taken once
    # Modes belong to a thread, and tensors of inference mode are written in no other.
    without_grad = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad

    def take() -> None:
        with without_grad():
            mine = prepare()
            for block in waiting:
                mine(block)

    helpers = [_pool(threads - 1).submit(take) for _ in range(threads - 1)]
    try:
        with _one_thread():
            for block in waiting:
                run(block)
    finally:
        for helper in helpers:
            if not helper.cancel():  # not begun: nothing is left for it
                helper.result()


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, "crossroads-experts", initializer=_join)


def _join() -> None:
    """Make the calling thread one that runs every operation by itself."""
    torch.mm(torch.ones(1, 1), torch.ones(1, 1))  # torch sets a new thread's count at first use
    _set_threads(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    local = _set_threads(1)
    try:
        yield
    finally:
        _set_threads(before, local)


def _set_threads(count: int, local: int | None = None) -> int:
    """Set this thread's OpenMP threads, and MKL's (0 = as the process); return MKL's before."""
    limits = _limits()
    assert limits is not None
    openmp, mkl = limits
    openmp(count)
    return 0 if mkl is None else int(mkl(count if local is None else local))


@cache
def _limits() -> tuple[Callable[[int], None], Callable[[int], int] | None] | None:
    """Return what sets the calling thread's own OpenMP and MKL threads, None if it is not there."""
    try:
        openmp = ctypes.CDLL(None).omp_set_num_threads
    except (AttributeError, OSError, TypeError):
        return None
    before = torch.get_num_threads()
    openmp(before + 1)
    is_ours = torch.get_num_threads() == before + 1  # not another library's runtime
    openmp(before)
    if not is_ours:
        return None
    if not torch.backends.mkl.is_available():
        return openmp, None
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return openmp, ctypes.CDLL(str(library)).MKL_Set_Num_Threads_Local
    except (AttributeError, OSError):
        return None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
