from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts.gradient import Parameters, adam, hold_out


def descend(target: float, *, epochs: int, decay: float = 0.0, patience: int = 3) -> float:
    """Minimise (p - target)^2 / 2; validation is the same."""

    def gradient(p: Parameters, rows: np.ndarray) -> Parameters:
        return [p[0] - np.float32(target)]

    def loss(p: Parameters) -> float:
        return float((p[0][0] - target) ** 2)

    start = [np.zeros(1, dtype=np.float32)]
    found = adam(
        start, gradient, loss, np.arange(20), np.random.default_rng(0),
        rate=0.05, decay=decay, batch=4, epochs=epochs, patience=patience,
    )  # fmt: skip
    assert start[0][0] == 0.0
    return float(found[0][0])


def test_it_finds_the_minimum() -> None:
    assert abs(descend(1.0, epochs=200, patience=200) - 1.0) < 1e-2


def test_without_epochs_it_returns_the_start() -> None:
    assert descend(1.0, epochs=0) == 0.0


def test_decay_pulls_towards_zero() -> None:
    assert descend(1.0, epochs=30, decay=1.0, patience=30) < descend(1.0, epochs=30, patience=30)


def test_what_only_gets_worse_ends_at_the_start() -> None:
    calls = []

    def loss(p: Parameters) -> float:
        calls.append(1)
        return float(p[0][0])

    found = adam(
        [np.zeros(1, dtype=np.float32)],
        lambda p, rows: [np.full(1, -1.0, dtype=np.float32)],
        loss, np.arange(4), np.random.default_rng(0),
        rate=0.1, decay=0.0, batch=2, epochs=50, patience=3,
    )  # fmt: skip
    assert found[0][0] == 0.0
    assert len(calls) == 4  # the start and three epochs of patience


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.floats(0.0, 0.5))
def test_copies_stay_on_one_side(groups: list[int], share: float) -> None:
    rows = np.array(groups)[:, None]
    train, valid = hold_out(rows, share, np.random.default_rng(0))
    assert sorted([*train, *valid]) == list(range(len(groups)))
    assert not {groups[n] for n in train} & {groups[n] for n in valid}
    assert len(train) > 0
