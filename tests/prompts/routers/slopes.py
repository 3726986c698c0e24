"""Gradients checked against differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def check_gradient(
    loss: Callable[[list[np.ndarray]], float],
    parts: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    *,
    step: float = 1e-5,
    tolerance: float = 1e-4,
) -> None:
    """Fail unless ``found`` are the slopes of ``loss`` at the float64 arrays ``parts``."""
    assert len(found) == len(parts)
    for n, part in enumerate(parts):
        assert found[n].shape == part.shape
        for place in np.ndindex(part.shape):
            up, down = ([p.copy() for p in parts] for _ in range(2))
            up[n][place] += step
            down[n][place] -= step
            slope = (loss(up) - loss(down)) / (2 * step)
            np.testing.assert_allclose(found[n][place], slope, atol=tolerance)
