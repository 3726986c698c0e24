"""Vectors with a value each, searched by nearness among those of one group; the oldest go first."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from crossroads.models.encoders import Float32

Rows = np.ndarray[tuple[int], np.dtype[np.intp]]


@dataclass(frozen=True, slots=True)
class Near:
    """A near row: where it was, how similar (cosine), and its writing's number."""

    row: int
    similarity: float
    serial: int


class Ring:
    """At most ``max_entries`` rows and ``max_bytes`` of values.

    Parameters
    ----------
    dim : of the vectors, which have length one
    max_entries, max_bytes : bounds
    clock : seconds that never go back
    """

    def __init__(
        self,
        dim: int,
        *,
        max_entries: int,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._vectors = np.zeros((max_entries, dim), dtype=np.float32)
        self._groups = np.zeros(max_entries, dtype=np.int64)  # 64 bits of the group's key
        self._expires = np.zeros(max_entries)
        self._serials = np.zeros(max_entries, dtype=np.int64)
        self._values: list[tuple[bytes, bytes] | None] = [None] * max_entries
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._next = 0
        self._num_used = 0  # rows that were ever written
        self._count = 0
        self._size = 0
        self._serial = 0

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return self._size

    def rows_of(self, group: bytes) -> Rows:
        """Return the rows of a group that have not expired."""
        mine = self._groups == _short(group)
        if not mine.any():
            return _NO_ROWS
        return np.flatnonzero(mine & (self._expires > self._clock()))

    def nearest(
        self,
        rows: Rows,
        vector: Float32,
        *,
        least: float = -2.0,
        most: int = 1,
    ) -> list[Near]:
        """Return the ``most`` nearest of ``rows`` that are at least so similar, nearest first.

        Safe in another thread than the one that adds.
        """
        if not len(rows):
            return []
        if 3 * len(rows) > self._num_used:  # to gather a row costs as much as to multiply three
            similarities = (self._vectors[: self._num_used] @ vector)[rows]
        else:
            similarities = self._vectors[rows] @ vector
        best = int(similarities.argmax())
        if similarities[best] < least:
            return []
        order = [best]
        if most > 1:
            near = np.flatnonzero(similarities >= least)
            order = near[np.argsort(-similarities[near], kind="stable")][:most].tolist()
        return [
            Near(row, float(similarities[place]), int(self._serials[row]))
            for place, row in zip(order, rows[order].tolist(), strict=True)
        ]

    def value(self, near: Near, group: bytes) -> bytes | None:
        """Return the value of a row; None where it was overwritten since."""
        entry = self._values[near.row]
        if entry is None or self._serials[near.row] != near.serial or entry[0] != group:
            return None
        return entry[1]

    def add(self, group: bytes, vector: Float32, value: bytes, *, ttl: float) -> None:
        """Keep a value for ``ttl`` seconds."""
        if len(value) > self._max_bytes or ttl <= 0:
            return
        while self._count and (
            self._count == self._max_entries or self._size + len(value) > self._max_bytes
        ):
            self._drop_oldest()
        row = self._next
        self._serial += 1
        self._vectors[row] = vector
        self._groups[row] = _short(group)
        self._expires[row] = self._clock() + ttl
        self._serials[row] = self._serial
        self._values[row] = (group, value)
        self._size += len(value)
        self._count += 1
        self._num_used = max(self._num_used, row + 1)
        self._next = (row + 1) % self._max_entries

    def clear(self) -> None:
        while self._count:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        row = (self._next - self._count) % self._max_entries
        entry = self._values[row]
        if entry is not None:
            self._size -= len(entry[1])
        self._values[row] = None
        self._groups[row] = 0
        self._expires[row] = 0.0
        self._count -= 1


_NO_ROWS = np.empty(0, dtype=np.intp)


def _short(group: bytes) -> int:
    return int.from_bytes(group[:8], "little", signed=True)
