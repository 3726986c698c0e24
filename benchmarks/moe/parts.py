"""What benchmarks/moe/layer.py measures, part by part; each returns plain data."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from methods import (
    BANK,
    BIG,
    HF_EAGER,
    HF_GROUPED,
    LIMIT,
    OURS,
    SMALL,
    Method,
    Size,
    build,
    draw_weights,
    ours,
    route,
)
from timing import interleaved, once

from crossroads.core.dispatch import plan_rows, swiglu_bank

MODES = {"forward": False, "forward and backward": True}
SKEW_WARM_UP = 12  # popular experts' row counts vary more: their compilations are counted above
FIRST, SETTLE = 32, 1  # batches of "first batches", after those that load the libraries
DECODE = (1, 16, 128)
TOKENS, EXPERTS = (256, 512, 1024, 2048, 4096, 8192), (2, 4, 8, 16, 32, 64)


def by_name(types: list[str]) -> dict[str, torch.dtype]:
    return {name: getattr(torch, name) for name in types}


def compared(seconds: float, types: list[str], *, wall: bool) -> dict[str, Any]:
    """Return figures by layer, type and mode; the slow packages run in the small layer only."""
    found: dict[str, Any] = {}
    for size in (SMALL, BIG):
        for name, dtype in by_name(types).items():
            methods, left_out = build(size, dtype, sequences=size is SMALL and not wall)
            for mode, train in MODES.items():
                times = interleaved(methods, size, dtype, train=train, seconds=seconds, wall=wall)
                found[f"{size.name}, {name}, {mode}"] = {"methods": times, "left_out": left_out}
    return found


def first_batches(types: list[str]) -> dict[str, Any]:
    """Return the mean CPU milliseconds of a new process's first batches, by case and method."""
    import transformers.models.mixtral.modeling_mixtral  # noqa: F401 - before the fork

    found: dict[str, Any] = {}
    fork = multiprocessing.get_context("fork")  # libraries are loaded, nothing is compiled yet
    for mode, train in MODES.items() if "bfloat16" in types else ():
        for method in (LIMIT, OURS, BANK, HF_EAGER, HF_GROUPED):
            with fork.Pool(1) as pool:
                mean_ms = pool.apply(_first_mean, (method, train))
            case = found.setdefault(f"small, bfloat16, {mode}", {})
            case[method] = {"mean_ms": round(mean_ms, 3)}
    return found


def _first_mean(name: str, train: bool) -> float:
    methods, _ = build(SMALL, torch.bfloat16, only=name)
    rng = torch.Generator().manual_seed(0)
    spent = []
    for _ in range(SETTLE + FIRST):
        x = torch.randn(methods[name].rows or SMALL.tokens, SMALL.width, generator=rng)
        x = x.to(torch.bfloat16)
        spent.append(once(methods[name], x, train=train, clock=time.process_time_ns))
    return statistics.fmean(spent[SETTLE:])


def decode(seconds: float, types: list[str]) -> dict[str, Any]:
    """Return forward figures of few tokens."""
    found: dict[str, Any] = {}
    for name, dtype in by_name(types).items():
        for tokens in DECODE:
            size = replace(SMALL, tokens=tokens)
            methods, left_out = build(size, dtype)
            times = interleaved(
                methods, size, dtype, train=False, seconds=seconds / 2, wall=False, most=400
            )
            found[f"{name}, {tokens} tokens"] = {"methods": times, "left_out": left_out}
    return found


def skew(seconds: float, types: list[str]) -> dict[str, Any]:
    """Return the time of skewed routing over that of even routing, of equally many rows."""
    found: dict[str, Any] = {}
    for name, dtype in by_name(types).items():
        weights, rng = draw_weights(SMALL, dtype), torch.Generator().manual_seed(1)
        shares = {"even": torch.ones(SMALL.experts), "skewed": _zipf(SMALL.experts)}

        def run(x: torch.Tensor, share: torch.Tensor, weights: Any, rng: Any) -> torch.Tensor:
            idx = torch.multinomial(share.expand(len(x), -1), SMALL.places, generator=rng)
            w = torch.full(idx.shape, 0.5, requires_grad=x.requires_grad)
            return swiglu_bank(x, idx, w, weights.gate_up, weights.down)

        methods = {
            routing: Method(partial(run, share=share, weights=weights, rng=rng), weights.all())
            for routing, share in shares.items()
        }
        for mode, train in MODES.items():
            times = interleaved(
                methods,
                SMALL,
                dtype,
                train=train,
                seconds=seconds,
                wall=False,
                warm_up=SKEW_WARM_UP,
            )
            over = times["skewed"]["median_ms"] / times["even"]["median_ms"]
            found[f"{name}, {mode}"] = {"methods": times, "skewed_over_even": round(over, 3)}
    return found


def _zipf(experts: int) -> torch.Tensor:
    return 1.0 / torch.arange(1, experts + 1)


def memory(types: list[str]) -> dict[str, Any]:
    """Return the most extra MiB of one forward in inference, and the bound of our own.

    Counted are torch's own allocations; what a matrix library keeps inside a product is not seen.
    The bound is the sorted outputs, the answer, and the buffers of the largest expert's block.
    """
    found: dict[str, Any] = {}
    for size in (SMALL, BIG):
        for name, dtype in by_name(types).items():
            methods, _ = build(size, dtype, sequences=False)
            rows = {method: _peak_mib(run, size, dtype) for method, run in methods.items()}
            found[f"{size.name}, {name}"] = rows | {"bound": _bound_mib(size, dtype)}
    return found


def _peak_mib(method: Method, size: Size, dtype: torch.dtype) -> float:
    from torch.profiler import ProfilerActivity, profile

    rng = torch.Generator().manual_seed(2)
    x = torch.randn(method.rows or size.tokens, size.width, generator=rng).to(dtype)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        method.run(x)
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return round(peak / 2**20, 2)


def _bound_mib(size: Size, dtype: torch.dtype) -> float:
    """Return (S D + N D + largest block (D + 3 F)) in MiB for the tokens that ``memory`` draws.

    N D is the answer itself, which is allocated like the rest.
    """
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(size.tokens, size.width, generator=rng).to(dtype)
    idx, _ = route(x, draw_weights(size, dtype).gate, size.places)
    plan = plan_rows(idx, size.experts, multiple=64 if dtype == torch.bfloat16 else 1)
    elements = (plan.n_rows + size.tokens) * size.width
    elements += plan.largest_block * (size.width + 3 * size.hidden)
    return round(elements * dtype.itemsize / 2**20, 2)


def scaling(seconds: float, types: list[str]) -> dict[str, Any]:
    """Return forward milliseconds by tokens at 8 experts, and by experts at 4096 tokens."""
    found: dict[str, Any] = {}
    for name, dtype in by_name(types).items():
        sizes = {("tokens", n): replace(SMALL, tokens=n) for n in TOKENS}
        sizes |= {("experts", e): replace(SMALL, experts=e) for e in EXPERTS}
        methods = {key: ours(draw_weights(size, dtype), size) for key, size in sizes.items()}
        spent: dict[tuple[str, int], list[float]] = {key: [] for key in sizes}
        rng, began, rounds = torch.Generator().manual_seed(3), time.monotonic(), 0
        while rounds < 4 or time.monotonic() - began < seconds:
            for key, size in sizes.items():
                x = torch.randn(size.tokens, size.width, generator=rng).to(dtype)
                ms = once(methods[key], x, train=False, clock=time.process_time_ns)
                if rounds:
                    spent[key].append(ms)
            rounds += 1
        for (axis, value), times in spent.items():
            found.setdefault(f"{axis}, {name}", {})[str(value)] = round(statistics.median(times), 3)
    return found
