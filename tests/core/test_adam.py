"""Adam takes the steps its authors write down."""

from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.adam import Adam


def test_the_first_step_is_the_rate_whatever_the_slope() -> None:
    adam = Adam([np.array([1.0, -2.0], dtype=np.float32)], 0.1)
    adam.step([np.array([5.0, -0.01], dtype=np.float32)])
    np.testing.assert_allclose(adam.parameters[0], [0.9, -1.9], rtol=1e-5)


def test_steps_follow_the_equations() -> None:
    rng = np.random.default_rng(0)
    slopes = rng.standard_normal((5, 3)).astype(np.float32)
    start = np.ones(3, dtype=np.float32)
    adam = Adam([start], 0.01, decay=0.5)
    x, first, second = np.ones(3), np.zeros(3), np.zeros(3)
    for t, slope in enumerate(slopes, start=1):
        adam.step([slope])
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        step = (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        x = x - 0.01 * (step + 0.5 * x)
    np.testing.assert_allclose(adam.parameters[0], x, rtol=1e-4)
    np.testing.assert_array_equal(start, np.ones(3))  # what was given stays


def test_as_many_slopes_as_parameters() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Adam([np.zeros(1, dtype=np.float32)] * 2, 0.1).step([np.zeros(1, dtype=np.float32)])
