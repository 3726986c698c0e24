"""Training by Adam with early stopping, and the rows it is stopped on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.adam import Adam

Float32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]
Parameters = list[Float32]


def hold_out(
    rows_ND: npt.NDArray[Any], share: float, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Return (training rows, validation rows), equal rows on one side; validation may be empty."""
    _, group_N = np.unique(rows_ND, axis=0, return_inverse=True)
    group_N = group_N.ravel()
    num_groups = int(group_N.max()) + 1
    chosen = rng.permutation(num_groups) < int(share * num_groups)
    held_out = chosen[group_N]
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def adam(
    start: Sequence[Float32],
    gradient: Callable[[Parameters, Ints], Parameters],
    loss: Callable[[Parameters], float],
    rows: Ints,
    rng: np.random.Generator,
    *,
    rate: float,
    decay: float,
    batch: int,
    epochs: int,
    patience: int = 3,
) -> Parameters:
    """Return the parameters of least ``loss`` met after an epoch; the start counts.

    Parameters
    ----------
    gradient : of the training loss at these parameters on a batch of rows
    loss : on validation rows, after each epoch
    rate, decay : step length, and weight decay as a share of the step
    patience : epochs without improvement before stopping
    """
    optimiser = Adam(start, rate, decay=decay)
    current = optimiser.parameters
    best, best_loss, waited = [p.copy() for p in current], loss(current), 0
    for _ in range(epochs):
        order = rng.permutation(rows)
        for begin in range(0, len(order), batch):
            optimiser.step(gradient(current, order[begin : begin + batch]))
        now = loss(current)
        if now < best_loss:
            best, best_loss, waited = [p.copy() for p in current], now, 0
        else:
            waited += 1
            if waited >= patience:
                break
    return best
