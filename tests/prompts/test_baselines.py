"""The single models and what mixing them at random reaches."""

from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.preference import hull_quality_at
from crossroads.prompts.baselines import SingleModels, baseline_names
from tests.prompts.toy_routers import random_table


def test_the_chance_aware_bound_needs_a_chance_column() -> None:
    assert baseline_names(random_table(chance=None), is_priced=True) == (
        "best-single", "cheapest", "random", "oracle"
    )  # fmt: skip
    assert baseline_names(random_table(), is_priced=True)[-1] == "oracle-chance-aware"


def test_without_prices_no_model_is_called_the_cheapest() -> None:
    assert baseline_names(random_table(), is_priced=False) == (
        "best-single", "random", "oracle", "oracle-chance-aware"
    )  # fmt: skip


def test_a_mix_of_two_models_lies_on_the_line_between_them() -> None:
    score = np.array([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    cost = np.array([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    singles = SingleModels.of(score, cost)
    assert singles.cost_range == (1.0, 3.0)
    assert singles.quality.tolist() == [0.5, 1.0, 0.0]
    assert hull_quality_at(singles.hull, 2.0) == pytest.approx(0.75)
    assert hull_quality_at(singles.hull, 9.0) == pytest.approx(1.0)
