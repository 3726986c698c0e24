"""Shares, and which methods the axes tell apart."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.adapters.survey.figures import SETTING, fewest_axes, num_pairs, same_on, shares
from crossroads.adapters.survey.inventory import Method, inventory
from crossroads.adapters.survey.moerging import methods
from crossroads.adapters.survey.schema import AXES
from tests.adapters.survey.examples import any_cells, cells

AUTHORS = methods(source="authors")


def method(name: str, **changes: str) -> Method:
    return Method(
        name=name, kind="moerging", source="ours", arxiv="", experts="adapters", about="-",
        cells=cells(**changes),
    )  # fmt: skip


def test_shares_of_every_axis_add_to_one_in_the_order_of_its_values() -> None:
    found = shares(inventory())
    assert list(found) == list(AXES)
    for name, axis in AXES.items():
        assert list(found[name]) == list(axis.values)
        assert sum(found[name].values()) == pytest.approx(1)


def test_a_share_is_a_count_over_the_number_of_methods() -> None:
    found = shares([method("a"), method("b"), method("c", expert_data="Shared")])
    assert found["expert_data"] == {"Private": 2 / 3, "Shared": 1 / 3, "Multiple": 0}
    assert shares([])["expert_data"]["Private"] == 0


def test_groups_are_of_methods_that_agree() -> None:
    some = [method("a"), method("b", user_dataset="Full"), method("c"), method("d")]
    assert same_on(some, AXES) == [("a", "c", "d")]
    assert same_on(some, ["expert_data"]) == [("a", "b", "c", "d")]
    assert num_pairs([("a", "c", "d"), ("x", "y")]) == 4


@given(st.lists(any_cells, max_size=8), st.sets(st.sampled_from(list(AXES))))
def test_pairs_of_one_group_are_the_pairs_that_agree(found: list, axes: set[str]) -> None:  # type: ignore[type-arg]
    some = [method(str(place), **one.to_dict()) for place, one in enumerate(found)]
    agree = [
        (a, b)
        for a, b in combinations(some, 2)
        if all(getattr(a.cells, axis) == getattr(b.cells, axis) for axis in axes)
    ]
    assert num_pairs(same_on(some, tuple(axes))) == len(agree)


@settings(max_examples=20)
@given(st.lists(any_cells, max_size=6))
def test_the_fewest_axes_are_enough_and_one_less_is_not(found: list) -> None:  # type: ignore[type-arg]
    some = [method(str(place), **one.to_dict()) for place, one in enumerate(found)]
    sets = fewest_axes(some)
    if not sets:
        assert same_on(some, AXES)
        return
    assert all(not same_on(some, axes) for axes in sets)
    if sets[0]:
        assert all(same_on(some, axes) for axes in combinations(AXES, len(sets[0]) - 1))


def test_the_authors_methods_all_differ() -> None:
    assert not same_on(AUTHORS, AXES)
    assert all(len(axes) < len(AXES) for axes in fewest_axes(AUTHORS))


def test_the_setting_leaves_out_how_a_method_works() -> None:
    routing = {name for name, axis in AXES.items() if axis.design == "routing design"}
    assert set(AXES) - set(SETTING) == routing - {"routing_dataset"}
