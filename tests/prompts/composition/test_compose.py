from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.composition import BudgetError, category_means, compose
from crossroads.prompts.embedded import load_embedded
from crossroads.prompts.pool import ModelCard, Pool, read_pool
from tests.prompts.toy import toy_table

SIZES = {"cook": 1e9, "astronomer": 3e9, "generalist": 2e9}
POOL = Pool(models=tuple(ModelCard(name=n, parameters=s) for n, s in SIZES.items()))


def test_with_room_every_category_has_its_specialist() -> None:
    found = compose(toy_table(), POOL, 4e9, shrink=0)
    assert found.mapping == {"cooking": "cook", "space": "astronomer"}
    assert found.score == pytest.approx(1.0)
    assert found.parameters == {"cook": 1e9, "astronomer": 3e9}
    assert found.total_parameters == 4e9
    assert found.active_parameters == pytest.approx(2e9)  # half the prompts each
    assert found.best_single_score == pytest.approx(0.5)


def test_a_smaller_budget_chooses_those_that_fit() -> None:
    found = compose(toy_table(), POOL, 3e9, shrink=0)
    assert found.mapping == {"cooking": "cook", "space": "generalist"}
    assert found.score == pytest.approx((1.0 + 0.4) / 2)  # two of five space prompts are even
    assert compose(toy_table(), POOL, 1e9).mapping == {"cooking": "cook", "space": "cook"}


def test_a_budget_nobody_fits_is_refused_with_the_smallest() -> None:
    with pytest.raises(BudgetError, match="smallest feasible budget is 1B"):
        compose(toy_table(), POOL, 5e8)


def test_a_score_never_falls_below_the_best_single_expert_that_fits() -> None:
    table, pool = load_embedded("complete"), read_pool("mmlu-pro")
    for budget in (4e9, 8e9, 16e9, 48e9, 80e9):
        found = compose(table, pool, budget)
        assert found.score >= found.best_single_score - 1e-9
        assert found.total_parameters <= budget
        assert found.active_parameters <= found.total_parameters


def test_prompts_without_a_category_are_left_out() -> None:
    table = toy_table()
    domain = table.domain.copy()
    domain[table.domain == "space"] = None
    assert compose(replace(table, domain=domain), POOL).mapping == {"cooking": "cook"}


def test_a_table_without_categories_or_sizes_is_refused() -> None:
    with pytest.raises(InputError, match="no 'domain' column"):
        compose(replace(toy_table(), domain=None), POOL)
    with pytest.raises(InputError, match="no size known of cook, astronomer, generalist"):
        compose(toy_table())


def test_category_means_are_shrunk_to_the_overall_mean() -> None:
    score = np.array([[1.0, np.nan], [0.0, 1.0], [1.0, 0.0]])
    member = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    means = category_means(score, member, 2.0)
    np.testing.assert_allclose(means[:, 0], [(1 + 4 / 3) / 3, (1 + 4 / 3) / 4, 2 / 3])
    np.testing.assert_allclose(means[:, 1], [0.5, 0.5, 0.5])
