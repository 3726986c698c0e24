"""Calls over processes: all of them, once, whatever a worker does with its memory."""

from __future__ import annotations

import os
import time
import warnings

import pytest

from crossroads.core.processes import unordered

_held: list[bytes] = []
_MIB = 1 << 20


def squared(value: int) -> int:
    if value == 13:
        raise ZeroDivisionError("a defect")
    return value * value


def hoard(number: int) -> tuple[int, int]:
    """Hold more memory with every call, for longer than workers go unmeasured."""
    _held.append(os.urandom(_MIB) * 250)
    time.sleep(1.1)
    return number, os.getpid()


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_call_is_made_once(jobs: int) -> None:
    assert sorted(unordered(squared, [(n,) for n in range(9)], jobs)) == [n * n for n in range(9)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_a_call_raises_is_raised(jobs: int) -> None:
    with pytest.raises(ZeroDivisionError, match="a defect"):
        list(unordered(squared, [(n,) for n in range(10, 20)], jobs))


def test_nothing_to_do_is_done_at_once() -> None:
    assert list(unordered(squared, [])) == []


@pytest.mark.slow
def test_a_worker_that_grows_is_replaced_though_warnings_are_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = list(unordered(hoard, [(n,) for n in range(8)], 2))
    assert sorted(number for number, _ in found) == list(range(8))
    assert len({worker for _, worker in found}) > 2
