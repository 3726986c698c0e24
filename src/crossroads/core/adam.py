"""Adam on plain arrays, with decoupled weight decay.

Kingma and Ba, Adam (2015); Loshchilov and Hutter, Decoupled weight decay regularization (2019).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # Kingma and Ba's own


class Adam:
    """Moves copies of the parameters given; they are ``parameters``, changed in place.

    Parameters
    ----------
    start : arrays of any shapes
    rate, decay : step length, and weight decay as a share of the step
    """

    def __init__(self, start: Sequence[Float32], rate: float, *, decay: float = 0.0) -> None:
        self.parameters = [p.copy() for p in start]
        self._first = [np.zeros_like(p) for p in start]
        self._second = [np.zeros_like(p) for p in start]
        self._rate, self._decay, self._steps = rate, decay, 0

    def step(self, slopes: Sequence[Float32]) -> None:
        """Take one step against the gradient, one array a parameter."""
        self._steps += 1
        first_share, second_share = 1 - _BETA1**self._steps, 1 - _BETA2**self._steps
        moved = zip(self.parameters, self._first, self._second, slopes, strict=True)
        for parameter, first, second, slope in moved:
            np.add(first, (1 - _BETA1) * (slope - first), out=first)
            np.add(second, (1 - _BETA2) * (np.square(slope) - second), out=second)
            length = np.sqrt(second / second_share) + _EPSILON
            step = self._rate * (first / first_share / length + self._decay * parameter)
            np.subtract(parameter, step, out=parameter)
