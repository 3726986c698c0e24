"""Capacitated assignment: five methods, one interface."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.assignment import Assignment, assign
from crossroads.core.errors import InputError, UsageError

METHODS = ["lp", "hungarian", "greedy", "topk", "sinkhorn"]
HEURISTICS = ["greedy", "topk", "sinkhorn"]
SETTINGS = settings(max_examples=40, deadline=None)


@st.composite
def problems(draw, forbid: bool = True, lowest: float = -3.0) -> tuple[np.ndarray, np.ndarray]:
    """Values in general position (no ties) and capacities, some of them 0."""
    items, targets = draw(st.integers(0, 7)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    value = rng.uniform(lowest, 5.0, size=(items, targets))
    if forbid:
        value[rng.random(value.shape) < 0.2] = -np.inf
    return value, rng.integers(0, 4, size=targets)


def check(result: Assignment, value: np.ndarray, capacity: np.ndarray, k: int = 1) -> None:
    """What holds whatever the method."""
    assert result.target.shape == result.weight.shape == (len(value), k)
    placed = result.target >= 0
    assert (result.load(len(capacity)) <= capacity).all()
    assert ((result.weight == 0) | placed).all()
    assert ((result.weight >= 0) & (result.weight <= 1)).all()
    total = 0.0
    for n, targets in enumerate(result.target):
        chosen = targets[targets >= 0].tolist()
        assert len(set(chosen)) == len(chosen)
        worth = value[n, chosen]
        assert np.isfinite(worth).all()
        assert (np.diff(worth) <= 0).all()
        assert (targets[len(chosen) :] == -1).all()
        total += worth.sum()
    assert result.value == pytest.approx(total)


def brute_force(value: np.ndarray, capacity: np.ndarray, require_all: bool) -> float:
    items, targets = value.shape
    best = -np.inf
    for choice in product(range(0 if require_all else -1, targets), repeat=items):
        load = np.bincount([t for t in choice if t >= 0], minlength=targets)
        if (load <= capacity).all():
            best = max(best, sum(value[n, t] for n, t in enumerate(choice) if t >= 0))
    return best


def naive_greedy(value: np.ndarray, capacity: np.ndarray, k: int) -> set[tuple[int, int]]:
    room, places = capacity.copy(), np.full(len(value), k)
    taken = set()
    for flat in np.argsort(-value, axis=None, kind="stable"):
        n, t = divmod(int(flat), value.shape[1])
        if value[n, t] >= 0 and room[t] and places[n]:
            room[t] -= 1
            places[n] -= 1
            taken.add((n, t))
    return taken


def pairs(result: Assignment) -> set[tuple[int, int]]:
    return {(n, int(t)) for n, row in enumerate(result.target) for t in row if t >= 0}


@SETTINGS
@given(problems(), st.sampled_from(METHODS))
def test_no_method_exceeds_a_capacity_or_uses_a_forbidden_or_losing_pair(case, method) -> None:
    value, capacity = case
    result = assign(value, capacity, method=method)
    check(result, value, capacity)
    assert all(value[n, t] >= 0 for n, t in pairs(result))


@SETTINGS
@given(problems().filter(lambda case: len(case[0]) <= 4), st.sampled_from(["lp", "hungarian"]))
def test_exact_methods_find_the_best_of_all_assignments(case, method: str) -> None:
    value, capacity = case
    result = assign(value, capacity, method=method)
    assert result.optimal
    assert result.value == pytest.approx(brute_force(value, capacity, require_all=False), abs=1e-6)


@SETTINGS
@given(problems())
def test_linear_programme_and_hungarian_agree(case) -> None:
    value, capacity = case
    exact = assign(value, capacity, method="lp")
    assert assign(value, capacity, method="hungarian").value == pytest.approx(exact.value, abs=1e-6)


@SETTINGS
@given(problems(), st.sampled_from(HEURISTICS))
def test_no_heuristic_beats_the_optimum_and_a_claim_of_optimality_is_true(case, method) -> None:
    value, capacity = case
    best = assign(value, capacity, method="lp").value
    result = assign(value, capacity, method=method)
    assert result.value <= best + 1e-6
    if result.optimal:
        assert result.value == pytest.approx(best, abs=1e-6)


@SETTINGS
@given(problems(), st.integers(1, 4))
def test_greedy_takes_pairs_in_descending_value_and_reaches_half_the_optimum(case, k) -> None:
    value, capacity = case
    k = min(k, value.shape[1])
    result = assign(value, capacity, method="greedy", k=k)
    check(result, value, capacity, k)
    assert pairs(result) == naive_greedy(value, np.minimum(capacity, len(value)), k)
    assert result.value >= assign(value, capacity, method="lp", k=k).value / 2 - 1e-6


@SETTINGS
@given(problems(), st.integers(1, 4))
def test_top_k_keeps_the_best_of_those_who_asked(case, k: int) -> None:
    value, capacity = case
    k = min(k, value.shape[1])
    result = assign(value, capacity, method="topk", k=k)
    check(result, value, capacity, k)
    wishes = [
        {t for t in np.argsort(-row, kind="stable")[:k].tolist() if row[t] >= 0} for row in value
    ]
    for t in range(value.shape[1]):
        asked = sorted(
            (n for n, wish in enumerate(wishes) if t in wish), key=lambda n: -value[n, t]
        )
        kept = {n for n, target in pairs(result) if target == t}
        assert kept == set(asked[: capacity[t]])


@SETTINGS
@given(problems(forbid=False), st.sampled_from(METHODS), st.randoms(use_true_random=False))
def test_renaming_items_and_targets_renames_the_assignment(case, method, random) -> None:
    value, capacity = case
    items, targets = list(range(value.shape[0])), list(range(value.shape[1]))
    random.shuffle(items)
    random.shuffle(targets)
    plain = assign(value, capacity, method=method)
    renamed = assign(value[np.ix_(items, targets)], capacity[targets], method=method)
    assert {(items[n], targets[t]) for n, t in pairs(renamed)} == pairs(plain)


@SETTINGS
@given(problems(forbid=False), st.sampled_from(METHODS))
def test_all_are_placed_where_that_is_required_also_at_a_loss(case, method: str) -> None:
    value, _ = case
    capacity = np.full(value.shape[1], -(-len(value) // value.shape[1]))
    value = value - 10.0
    if method == "topk":
        capacity = np.full(value.shape[1], len(value))
    result = assign(value, capacity, method=method, require_all=True)
    check(result, value, capacity)
    assert (result.target >= 0).all()
    if result.optimal and len(value) <= 4:
        assert result.value == pytest.approx(brute_force(value, capacity, True), abs=1e-6)


@SETTINGS
@given(problems(), st.integers(2, 4))
def test_several_targets_an_item_are_placed_exactly(case, k: int) -> None:
    value, capacity = case
    k = min(k, value.shape[1])
    result = assign(value, capacity, method="lp", k=k)
    check(result, value, capacity, k)
    assert result.value >= assign(value, capacity, method="topk", k=k).value - 1e-6


def test_sinkhorn_comes_near_the_optimum_and_nearer_when_colder() -> None:
    value = np.random.default_rng(0).uniform(size=(60, 5))
    best = assign(value, 12, method="lp", require_all=True).value
    warm, cold = (
        assign(value, 12, method="sinkhorn", require_all=True, epsilon=epsilon).value
        for epsilon in (5.0, 0.01)
    )
    assert cold >= 0.99 * best
    assert warm <= cold


def test_sinkhorn_reports_the_mass_it_moved() -> None:
    clear = assign([[1.0, 0.0], [0.0, 1.0]], 1, method="sinkhorn", epsilon=0.01, require_all=True)
    assert clear.weight == pytest.approx(1.0)
    tied = assign([[1.0, 1.0], [1.0, 1.0]], 1, method="sinkhorn", require_all=True)
    assert tied.weight == pytest.approx(0.5)


def test_greedy_pays_for_its_haste() -> None:
    value = [[1.0, 0.9], [0.9, 0.0]]
    greedy, exact = (assign(value, 1, method=m) for m in ("greedy", "lp"))
    assert (greedy.value, exact.value) == (1.0, pytest.approx(1.8))
    assert exact.target.tolist() == [[1], [0]]
    assert not greedy.optimal


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_unit_of_the_values_does_not_matter(scale: float) -> None:
    value = np.random.default_rng(1).uniform(size=(30, 4))
    plain, scaled = assign(value, 6), assign(value * scale, 6)
    np.testing.assert_array_equal(plain.target, scaled.target)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("require_all", [False, True])
def test_no_items_give_an_empty_assignment(method: str, require_all: bool) -> None:
    result = assign(np.empty((0, 3)), 2, method=method, require_all=require_all)
    assert result.target.shape == (0, 1)
    assert result.value == 0.0
    assert result.optimal


@pytest.mark.parametrize("method", METHODS)
def test_one_target_keeps_its_best_items(method: str) -> None:
    result = assign([[3.0], [1.0], [2.0], [-1.0]], 2, method=method)
    assert result.target[:, 0].tolist() == [0, -1, 0, -1]
    assert result.value == 5.0


@pytest.mark.parametrize("method", METHODS)
def test_no_capacity_places_nobody_and_unlimited_gives_each_its_best(method: str) -> None:
    value = np.array([[1.0, 2.0], [4.0, 3.0], [5.0, 6.0]])
    assert (assign(value, 0, method=method).target == -1).all()
    assert assign(value, np.inf, method=method).target[:, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize("method", METHODS)
def test_too_little_capacity_for_all_is_an_error(method: str) -> None:
    with pytest.raises(InputError, match="3 placements are required but all capacities sum to 2"):
        assign(np.ones((3, 2)), 1, method=method, require_all=True)


@pytest.mark.parametrize("method", METHODS)
def test_an_item_forbidden_everywhere_is_an_error_only_if_all_must_be_placed(method) -> None:
    value = [[1.0, 2.0], [-np.inf, -np.inf]]
    assert assign(value, 2, method=method).target[:, 0].tolist() == [1, -1]
    with pytest.raises(InputError, match="item 1 has 0 allowed targets"):
        assign(value, 2, method=method, require_all=True)


@pytest.mark.parametrize(
    ("method", "message"), [("lp", "no assignment places"), ("hungarian", "no assignment places")]
)
def test_exact_methods_recognise_a_hidden_bottleneck(method: str, message: str) -> None:
    value = [[1.0, -np.inf], [1.0, -np.inf], [1.0, 1.0]]
    with pytest.raises(InputError, match=message):
        assign(value, [1, 2], method=method, require_all=True)


@pytest.mark.parametrize("method", ["greedy", "topk"])
def test_a_heuristic_that_paints_itself_into_a_corner_points_to_the_exact_method(method) -> None:
    value = [[2.0, 1.0], [1.0, -np.inf]]
    with pytest.raises(InputError, match=r"left 1 of 2 items.*use method='lp'"):
        assign(value, 1, method=method, require_all=True)
    assert assign(value, 1, require_all=True).target[:, 0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([[np.nan]], 1), {}, InputError, "NaN"),
        (([[np.inf]], 1), {}, InputError, "NaN or \\+inf"),
        (([1.0], 1), {}, InputError, r"shape \(N, K\)"),
        (([[1.0]], -1), {}, InputError, "whole numbers >= 0"),
        (([[1.0]], 1.5), {}, InputError, "whole numbers >= 0"),
        (([[1.0]], np.nan), {}, InputError, "whole numbers >= 0"),
        (([[1.0, 2.0]], [1, 2, 3]), {}, InputError, "expected one capacity or 2"),
        (([[1.0]], 1), {"k": 2}, UsageError, r"k in \[1, 1\]"),
        (([[1.0]], 1), {"k": 0}, UsageError, r"k in \[1, 1\]"),
        (([[1.0, 2.0]], 1), {"k": 2, "method": "hungarian"}, UsageError, "places k = 1"),
        (([[1.0, 2.0]], 1), {"k": 2, "method": "sinkhorn"}, UsageError, "places k = 1"),
        (([[1.0]], 1), {"method": "gredy"}, UsageError, "did you mean 'greedy'"),
        (([[1.0]], 1), {"method": "sinkhorn", "epsilon": 0.0}, UsageError, "epsilon"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, options, error, message) -> None:
    with pytest.raises(error, match=message):
        assign(*arguments, **options)
