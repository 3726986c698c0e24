"""Splits part what they claim to part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.splits import split_rows
from crossroads.prompts.tasks import PromptTask
from tests.prompts.toy_routers import make_table, random_table


def with_domains(sizes: list[int]) -> OutcomeTable:
    names = [f"d{i}" for i, size in enumerate(sizes) for _ in range(size)]
    return make_table([[0, 1]] * len(names), domains=names)


@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=12),
    st.integers(0, 50),
    st.floats(0.1, 0.9),
)
def test_domains_are_never_parted_and_both_sides_are_filled(
    sizes: list[int], seed: int, share: float
) -> None:
    table = with_domains(sizes)
    train, test = split_rows(table, seed, by="domain", train_share=share)
    assert sorted([*train, *test]) == list(range(len(table)))
    assert len(train) and len(test)
    assert table.domain is not None
    assert not set(table.domain[train]) & set(table.domain[test])


def test_seeds_hold_different_domains_out_and_about_the_share_asked_for() -> None:
    table = with_domains([50] * 14)
    assert table.domain is not None
    held = [set(table.domain[split_rows(table, s, by="domain")[1]]) for s in range(5)]
    assert len({frozenset(names) for names in held}) > 1
    assert all(3 <= len(names) <= 5 for names in held)


def test_a_table_without_two_domains_cannot_be_split_by_domain() -> None:
    with pytest.raises(InputError, match="add a 'domain' column"):
        split_rows(make_table([[0, 1]] * 4), 0, by="domain")
    with pytest.raises(InputError, match="one domain, 'd0'"):
        split_rows(with_domains([5]), 0, by="domain")


def test_max_train_keeps_that_many_and_judges_the_same_prompts() -> None:
    table = random_table(n=300)
    train, test = split_rows(table, 1)
    few, same = split_rows(table, 1, max_train=20)
    assert len(few) == 20
    assert set(few) <= set(train)
    np.testing.assert_array_equal(same, test)
    more, _ = split_rows(table, 1, max_train=40)
    assert set(few) <= set(more)


def test_a_pool_without_one_model_keeps_its_prompts_and_finds_its_best() -> None:
    table = make_table(
        [[1, 0, 0], [1, 0, 1], [1, 0, 1], [0, 1, 0]], [[0.1, 0.2, 0.3]] * 4,
        split=["train", "train", "train", "test"],
    )  # fmt: skip
    split = PromptTask(table=table).split_of(0)
    rest = split.without_model(0)
    assert rest.training.models == ("b", "c")
    assert (split.best_single, rest.best_single) == (0, 1)
    np.testing.assert_array_equal(rest.rows, split.rows)
    np.testing.assert_array_equal(rest.score, [[1, 0]])
    np.testing.assert_allclose(rest.expected_cost, [0.2, 0.3])
    assert rest.queries.truth is not None
    np.testing.assert_array_equal(rest.queries.truth, [[1, 0]])


def test_difficulty_is_the_tables_own_where_it_has_one() -> None:
    table = make_table([[1, 1, 1], [1, 1, 1], [1, 0, 0], [0, 0, 0]], split=["train"] + ["test"] * 3)
    assert list(PromptTask(table=table).split_of(0).difficulty) == ["easy", "hard", "hard"]
    named = replace(table, difficulty=np.array(["a", "b", "c", "d"], dtype=object))
    assert list(PromptTask(table=named).split_of(0).difficulty) == ["b", "c", "d"]
