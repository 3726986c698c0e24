"""Interleaved timing of methods on inputs that no call has seen before."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

WARM_UP = 3
LEAST_ROUNDS, MOST_ROUNDS = 8, 400
Run = Callable[[Any], Any]


def interleaved(
    methods: Mapping[str, Run],
    draw: Callable[[int], Any],
    *,
    seconds: float,
    limit: str,
    least: int = LEAST_ROUNDS,
    warm_up: int = WARM_UP,
) -> dict[str, dict[str, float]]:
    """Return figures by method: every round runs each once, in random order, on one new input.

    Time is CPU time of the process, which neighbours on the machine lengthen little. ``ratio`` is
    the median over rounds of the limit's time over the method's, ``best_ratio`` that of the best
    times.
    """
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in methods}
    began, rounds = time.monotonic(), 0
    with torch.no_grad():
        while rounds < warm_up + least or (
            rounds < warm_up + MOST_ROUNDS and time.monotonic() - began < seconds
        ):
            given = draw(rounds)
            for name in order.sample(list(methods), len(methods)):
                start = time.process_time_ns()
                methods[name](given)
                spent = (time.process_time_ns() - start) / 1e3
                if rounds >= warm_up:
                    times[name].append(spent)
            rounds += 1
    return {name: _figures(spent, times[limit]) for name, spent in times.items()}


def _figures(spent: list[float], limit: list[float]) -> dict[str, float]:
    pairs = [a / b for a, b in zip(limit, spent, strict=True)]
    return {
        "median_us": round(statistics.median(spent), 1),
        "best_us": round(min(spent), 1),
        "rounds": len(spent),
        "ratio": round(statistics.median(pairs), 3),
        "best_ratio": round(min(limit) / min(spent), 3),
    }


def load() -> float:
    """Return how many processes wanted a processor in the last minute, this one among them."""
    return round(os.getloadavg()[0], 2)
