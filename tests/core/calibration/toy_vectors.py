"""Two clouds that are easy to tell apart, and two that are the same cloud."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def clouds(
    count: int = 160, *, gap: float = 6.0, dim: int = 6, seed: int = 0
) -> tuple[Float32, Ints]:
    """Return vectors (count, dim) and labels 0, 1; class means lie ``gap`` apart."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    x = rng.normal(size=(count, dim))
    x[:, 0] += gap * label
    return x.astype(np.float32), label
