from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from crossroads.gateway.policies.draws import draw, pick, rendezvous, salt


def test_draws_are_uniform_and_the_same_again() -> None:
    salted = salt(1, "a")
    numbers = [draw(salted, f"key {n}") for n in range(4000)]
    assert numbers == [draw(salt(1, "a"), f"key {n}") for n in range(4000)]
    assert kstest(numbers, "uniform").pvalue > 0.001


def test_seeds_and_purposes_draw_apart() -> None:
    drawn = {draw(salt(seed, purpose), "key") for seed in (0, 1) for purpose in ("a", "b")}
    assert len(drawn) == 4


@given(st.lists(st.floats(0, 1), min_size=1).filter(any), st.floats(0, 1, exclude_max=True))
def test_what_has_no_probability_is_never_picked(weights: list[float], number: float) -> None:
    assert weights[pick(weights, number)] > 0


def test_arms_are_chosen_in_proportion_to_their_weights() -> None:
    weights = [1.0, 2.0, 0.0, 5.0]
    salts = [salt(7, str(arm)) for arm in range(4)]
    counts = Counter(rendezvous(salts, weights, f"session {n}") for n in range(8000))
    assert counts[2] == 0
    observed = [counts[arm] for arm in (0, 1, 3)]
    assert chisquare(observed, [1000, 2000, 5000]).pvalue > 0.001


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_an_arm_that_goes_moves_only_its_own_keys(gone: int) -> None:
    salts = [salt(7, str(arm)) for arm in range(3)]
    weights = [1.0, 2.0, 3.0]
    less = [0.0 if arm == gone else weight for arm, weight in enumerate(weights)]
    for n in range(500):
        before = rendezvous(salts, weights, str(n))
        after = rendezvous(salts, less, str(n))
        assert after == before if before != gone else after != gone
