from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from crossroads.prompts.regression import (
    logistic_regressions,
    ridge,
    sigmoid,
    softmax,
    softmax_regression,
    sparse_ridge,
)


def problem(
    missing: float, *, rows: int = 60, columns: int = 5, models: int = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(rows, columns))
    target = design @ rng.normal(size=(columns, models)) + rng.normal(size=(rows, models))
    target[rng.random(target.shape) < missing] = np.nan
    return design, target, rng.permutation(rows) % 4


def solve(design: np.ndarray, target: np.ndarray, penalty: float) -> np.ndarray:
    """Normal equations of one model on the prompts it was run on."""
    known = np.isfinite(target)
    x = design[known]
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ target[known])


@pytest.mark.parametrize("missing", [0.0, 0.1, 0.8])
def test_ridge_solves_each_models_normal_equations(missing: float) -> None:
    design, target, fold = problem(missing)
    coefficients, _ = ridge(design, target, (0.5, 20.0), fold)
    for i, penalty in enumerate((0.5, 20.0)):
        for k in range(3):
            expected = solve(design, target[:, k], penalty)
            np.testing.assert_allclose(coefficients[i][:, k], expected, atol=1e-4)


@pytest.mark.parametrize("missing", [0.0, 0.1, 0.8])
def test_held_out_predictions_do_not_know_their_fold(missing: float) -> None:
    design, target, fold = problem(missing)
    _, held_out = ridge(design, target, (2.0,), fold)
    for j in range(4):
        for k in range(3):
            without = solve(design[fold != j], target[fold != j][:, k], 2.0)
            expected = design[fold == j] @ without
            np.testing.assert_allclose(held_out[0][fold == j, k], expected, atol=1e-4)


def test_ridge_takes_empty_folds_and_models_without_a_prompt() -> None:
    design, target, fold = problem(0.0)
    target[:, 1] = np.nan
    coefficients, held_out = ridge(design, target, (1.0,), np.where(fold == 2, 3, fold))
    assert (coefficients[0][:, 1] == 0).all()
    assert np.isfinite(held_out).all()


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_sparse_ridge_reaches_the_solution_given_enough_steps(missing: float) -> None:
    design, target, _ = problem(missing)
    found = sparse_ridge(csr_array(design), target, 2.0, steps=40)
    for k in range(3):
        np.testing.assert_allclose(found[:, k], solve(design, target[:, k], 2.0), atol=1e-6)


def test_fewer_steps_shrink_more() -> None:
    design, target, _ = problem(0.0, columns=30)
    lengths = [np.linalg.norm(sparse_ridge(csr_array(design), target, 0.1, steps=n))
               for n in (0, 1, 2, 5, 30)]  # fmt: skip
    assert lengths == sorted(lengths)
    assert lengths[0] == 0


def test_sparse_ridge_of_an_empty_design_is_zero() -> None:
    words = csr_array((4, 6))
    assert not sparse_ridge(words, np.ones((4, 2)), 1.0).any()


def test_softmax_regression_finds_separable_classes() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(3, size=90)
    design = np.eye(3)[label] + rng.normal(scale=0.1, size=(90, 3))
    weights = softmax_regression(design, label, 3, penalty=0.1)
    probability = softmax(design @ weights[:-1] + weights[-1])
    assert (probability.argmax(axis=1) == label).all()


def test_a_huge_penalty_leaves_the_class_shares() -> None:
    label = np.array([0] * 60 + [1] * 30 + [2] * 10)
    design = np.random.default_rng(0).normal(size=(100, 4))
    weights = softmax_regression(design, label, 3, penalty=1e6, steps=200)
    np.testing.assert_allclose(softmax(weights[-1:])[0], [0.6, 0.3, 0.1], atol=1e-3)


def test_logistic_regressions_leave_out_missing_cells() -> None:
    rng = np.random.default_rng(0)
    design = rng.normal(size=(80, 3))
    target = (rng.random((80, 2)) < sigmoid(design[:, :2])).astype(float)
    holes = target.copy()
    holes[50:, 1] = np.nan
    both = logistic_regressions(design, holes, penalty=1.0, steps=200)
    alone = logistic_regressions(design[:50], target[:50, 1:], penalty=1.0, steps=200)
    np.testing.assert_allclose(both[:, 1], alone[:, 0], atol=1e-3)


@given(st.floats(-1e6, 1e6))
def test_sigmoid_stays_between_zero_and_one(logit: float) -> None:
    value = float(sigmoid(np.array(logit)))
    assert 0.0 <= value <= 1.0
    np.testing.assert_allclose(value + float(sigmoid(np.array(-logit))), 1.0, atol=1e-12)
