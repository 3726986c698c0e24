"""Hands things from the event loop to a thread that works on them in batches."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Outbox(Generic[T]):
    """A bounded queue that a thread of its own empties every ``period`` seconds.

    `put` never waits and never raises; what does not fit is dropped and counted. The thread polls
    rather than waits for each item, so that a busy event loop is not interrupted for every one.

    Parameters
    ----------
    work : takes a batch, in the thread. What it raises is kept as ``error``; its batch is lost.
    size : most items waiting
    period : seconds between two batches
    """

    def __init__(
        self, name: str, work: Callable[[Sequence[T]], None], *, size: int, period: float
    ) -> None:
        self.num_dropped = 0
        self.error: str | None = None
        self._work = work
        self._items: deque[T] = deque()
        self._size = size
        self._period = period
        self._stop = threading.Event()
        self._lock = threading.Lock()  # of working, so that flush and the thread keep the order
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Queue one item; about 0.1 microseconds."""
        if len(self._items) < self._size:
            self._items.append(item)
        else:
            self.num_dropped += 1

    def start(self) -> None:
        if not self._thread.is_alive() and not self._stop.is_set():
            self._thread.start()

    def flush(self) -> None:
        """Work on everything queued, in the caller's thread."""
        with self._lock:
            batch = [self._items.popleft() for _ in range(len(self._items))]
            if not batch:
                return
            try:
                self._work(batch)
            except Exception as error:  # noqa: BLE001 - telemetry never stops what it watches
                self.error = f"{type(error).__name__}: {error}"
                self.num_dropped += len(batch)
            else:
                self.error = None

    def close(self) -> None:
        """Work on what is left, then end the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        self.flush()

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            self.flush()
