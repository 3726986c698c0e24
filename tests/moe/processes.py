"""Start the processes of a test of distributed work, and never wait for ever."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def spawn(world: int, target: Callable[..., None], *args: Any) -> None:
    """Run ``target(rank, world, *args)`` in ``world`` processes; fail with any of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([target.__module__])  # torch is imported once for all ranks
    ranks = [
        context.Process(target=target, args=(rank, world, *args), daemon=True)
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    last = time.monotonic() + 240
    for process in ranks:
        process.join(timeout=max(last - time.monotonic(), 0))
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        if process.is_alive():
            process.kill()
    assert codes == [0] * world


@contextmanager
def group(rank: int, world: int, folder: str, call: str = "") -> Iterator[None]:
    """Join the others over loopback; ``call`` tells groups of one size in one folder apart."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous-{world}{call}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=100),
    )
    yield
    dist.barrier()
    dist.destroy_process_group()
