"""Which items a training step sees: a function of seed and step, so a resumed run goes on alike.

All arms of a comparison that share a seed see the same items in the same order, whatever their
models draw.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError

Int64 = npt.NDArray[np.int64]


def batch_indices(num_items: int, batch_size: int, *, step: int, seed: int) -> Int64:
    """Return the items of one step, (batch_size,), in epochs without replacement.

    Every epoch is a new permutation; its last items that fill no batch are left out. Raises
    UsageError for a batch larger than the data and for a negative step or seed.
    """
    for name, value in (("step", step), ("seed", seed)):
        if value < 0:
            raise UsageError(f"{name}: expected 0 or more, got {value!r}")
    if not 1 <= batch_size <= num_items:
        raise UsageError(
            f"batch_size: expected a number in [1, {num_items}], the items there are, "
            f"got {batch_size!r}"
        )
    epoch, place = divmod(step, num_items // batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(num_items)
    return order[place * batch_size : (place + 1) * batch_size]
