"""Mini-batch Adam with early stopping, for the small models this package trains in NumPy.

Kingma and Ba, Adam (2015, arXiv 1412.6980); decoupled weight decay after Loshchilov and Hutter
(2019, arXiv 1711.05101).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Parameters = dict[str, npt.NDArray[np.float32]]
Rows = npt.NDArray[np.intp]
# Rows to learn from -> gradient of the mean loss over them.
Gradient = Callable[[Parameters, Rows], dict[str, npt.NDArray[Any]]]
# Rows to judge -> mean loss over them.
Loss = Callable[[Parameters, Rows], float]

_HELD_OUT = 0.15
_FIRST_DECAY, _SECOND_DECAY, _TINY = 0.9, 0.999, 1e-8


def adam(
    parameters: Parameters,
    gradient: Gradient,
    loss: Loss,
    num_rows: int,
    rng: np.random.Generator,
    *,
    rate: float = 1e-3,
    weight_decay: float = 0.0,
    batch: int = 128,
    epochs: int = 60,
    patience: int = 5,
) -> Parameters:
    """Return the parameters of lowest loss on held-out rows; the starting ones if none is lower.

    15 % of the rows are held out. Stops after ``patience`` epochs without a new lowest loss. With
    fewer than 8 rows nothing is learned.
    """
    if num_rows < 8:
        return parameters
    order = rng.permutation(num_rows)
    num_held_out = max(1, int(_HELD_OUT * num_rows))
    held_out, train = np.sort(order[:num_held_out]), order[num_held_out:]
    current = {name: value.copy() for name, value in parameters.items()}
    best, lowest, since = parameters, loss(parameters, held_out), 0
    first = {name: np.zeros_like(value) for name, value in parameters.items()}
    second = {name: np.zeros_like(value) for name, value in parameters.items()}
    step = 0
    for _ in range(epochs):
        rng.shuffle(train)
        for start in range(0, len(train), batch):
            step += 1
            scale = rate * np.sqrt(1 - _SECOND_DECAY**step) / (1 - _FIRST_DECAY**step)
            for name, slope in gradient(current, train[start : start + batch]).items():
                first[name] += (1 - _FIRST_DECAY) * (slope - first[name])
                second[name] += (1 - _SECOND_DECAY) * (np.square(slope) - second[name])
                move = first[name] / (np.sqrt(second[name]) + _TINY)
                decay = rate * weight_decay * current[name]
                current[name] -= (scale * move + decay).astype(np.float32)
        value = loss(current, held_out)
        since += 1
        if value < lowest:
            best = {name: array.copy() for name, array in current.items()}
            lowest, since = value, 0
        if since >= patience:
            break
    return best
