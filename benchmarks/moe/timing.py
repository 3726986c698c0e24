"""Interleaved timing of layers on tokens that no call has seen before."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import torch
from methods import LIMIT, Method, Size, clear

WARM_UP = 2
LEAST_ROUNDS, MOST_ROUNDS = 4, 40


def interleaved(
    methods: dict[str, Method],
    size: Size,
    dtype: torch.dtype,
    *,
    train: bool,
    seconds: float,
    wall: bool,
    most: int = MOST_ROUNDS,
    warm_up: int = WARM_UP,
    seed: int = 0,
) -> dict[str, Any]:
    """Return figures by method: every round runs each once, in random order, on new tokens.

    Time is CPU time of the process, or wall time. ``ratio`` is the median over rounds of the
    limit's time over the method's, ``mean_ratio`` the ratio of the sums, ``best_ratio`` that of the
    best times.
    """
    draw, rng = random.Random(seed), torch.Generator().manual_seed(seed)
    clock = time.perf_counter_ns if wall else time.process_time_ns
    times: dict[str, list[float]] = {name: [] for name in methods}
    began = time.monotonic()
    rounds = 0
    while rounds < warm_up + LEAST_ROUNDS or (
        rounds < warm_up + most and time.monotonic() - began < seconds
    ):
        for name in draw.sample(list(methods), len(methods)):
            method = methods[name]
            x = torch.randn(method.rows or size.tokens, size.width, generator=rng).to(dtype)
            spent = once(method, x, train=train, clock=clock)
            if rounds >= warm_up:
                times[name].append(spent)
        rounds += 1
    clear(methods.values())
    return {name: figures(spent, times.get(LIMIT)) for name, spent in times.items()}


def once(method: Method, x: torch.Tensor, *, train: bool, clock: Any) -> float:
    """Return the milliseconds of one forward, or forward and backward."""
    clear([method])
    if not train:
        with torch.no_grad():
            began = clock()
            method.run(x)
            return (clock() - began) / 1e6
    x.requires_grad_()
    grad = torch.randn(len(x), x.shape[1]).to(x.dtype)
    began = clock()
    method.run(x).backward(grad)
    return (clock() - began) / 1e6


def figures(spent: list[float], limit: list[float] | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "median_ms": round(statistics.median(spent), 3),
        "mean_ms": round(statistics.fmean(spent), 3),
        "best_ms": round(min(spent), 3),
        "rounds": len(spent),
    }
    if limit is not None:
        pairs = [a / b for a, b in zip(limit, spent, strict=True)]
        found |= {
            "ratio": round(statistics.median(pairs), 3),
            "mean_ratio": round(sum(limit) / sum(spent), 3),
            "best_ratio": round(min(limit) / min(spent), 3),
        }
    return found
