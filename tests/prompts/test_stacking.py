from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts.stacking import (
    best_single_bonus,
    blend,
    contrasts,
    grouped_folds,
    stack_weights,
)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(2, 5))
def test_equal_rows_share_a_fold_and_folds_are_even(groups: list[int], folds: int) -> None:
    rows = np.array(groups, dtype=np.float64)[:, None]
    fold = grouped_folds(rows, folds, np.random.default_rng(0))
    fold_of = {group: set(fold[rows[:, 0] == group]) for group in set(groups)}
    assert all(len(found) == 1 for found in fold_of.values())
    counts = np.bincount([found.pop() for found in fold_of.values()], minlength=folds)
    assert counts.max() - counts.min() <= 1


@given(st.integers(0, 5), st.floats(0.0, 0.9))
def test_contrasts_add_up_to_nothing_and_ignore_what_is_common(seed: int, missing: float) -> None:
    rng = np.random.default_rng(seed)
    value = rng.normal(size=(6, 4))
    value[rng.random(value.shape) < missing] = np.nan
    found = contrasts(value)
    np.testing.assert_allclose(found.sum(axis=1), 0.0, atol=1e-12)
    np.testing.assert_allclose(contrasts(value + rng.normal(size=(6, 1))), found, atol=1e-12)
    assert (found[np.isnan(value)] == 0).all()


def members(missing: float = 0.0) -> tuple[list[np.ndarray], np.ndarray]:
    """Contrast known to the first member, difficulty to the second, nothing to the third."""
    rng = np.random.default_rng(0)
    contrast = contrasts(rng.normal(size=(2000, 3)))
    common = np.repeat(rng.normal(size=(2000, 1)), 3, axis=1)
    target = contrast + common
    target[rng.random(target.shape) < missing] = np.nan
    return [contrast, common, rng.normal(size=(2000, 3))], target


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_contrast_and_common_part_are_weighed_apart(missing: float) -> None:
    predictions, target = members(missing)
    contrast, common = stack_weights(predictions, target, strength=1e-6)
    assert contrast[0] == pytest.approx(1.0, abs=0.05)
    assert common[1] == pytest.approx(1.0, abs=0.1)
    assert contrast[1:] == pytest.approx([0.0, 0.0], abs=0.05)
    assert common[2] == pytest.approx(0.0, abs=0.05)


def test_weights_are_never_negative() -> None:
    predictions, target = members()
    contrast, common = stack_weights([-p for p in predictions[:2]], target)
    assert contrast == pytest.approx([0.0, 0.0], abs=1e-6)
    assert common == pytest.approx([0.0, 0.0], abs=1e-6)
    assert min(*contrast, *common) >= 0.0


def test_members_that_say_the_same_share_the_weight() -> None:
    predictions, target = members()
    contrast, _ = stack_weights([predictions[0], predictions[0]], target)
    assert contrast[0] == pytest.approx(contrast[1])
    assert 0.8 < contrast.sum() < 1.0


def test_a_single_model_has_no_contrast_to_weigh() -> None:
    one = np.random.default_rng(0).normal(size=(20, 1))
    contrast, common = stack_weights([one], one, strength=0.0)
    assert contrast.tolist() == [0.0]
    assert common == pytest.approx([1.0])


def test_blending_coefficients_blends_predictions() -> None:
    rng = np.random.default_rng(0)
    design, coefficients = rng.normal(size=(9, 4)), rng.normal(size=(2, 4, 3))
    weights = np.array([0.3, 0.5]), np.array([0.7, 0.1])
    early = design @ np.sum(blend(list(coefficients), *weights), axis=0)
    late = np.sum(blend([design @ c for c in coefficients], *weights), axis=0)
    np.testing.assert_allclose(early, late, atol=1e-12)


def quality(estimate: np.ndarray, score: np.ndarray) -> float:
    return float(score[np.arange(len(score)), estimate.argmax(axis=1)].mean())


def test_no_bonus_where_leaving_clearly_pays() -> None:
    rng = np.random.default_rng(0)
    score = (rng.random((400, 2)) < [0.6, 0.5]).astype(float)
    assert best_single_bonus(score, score, 0) == 0.0


def test_the_bonus_keeps_the_leads_that_pay_and_drops_those_that_do_not() -> None:
    small, large = np.tile([0.5, 0.51], (300, 1)), np.tile([0.5, 0.8], (100, 1))
    estimate = np.concatenate([small, large])
    score = np.concatenate([np.tile([1.0, 0.0], (300, 1)), np.tile([0.0, 1.0], (100, 1))])
    bonus = best_single_bonus(estimate, score, 0)
    assert 0.01 <= bonus < 0.3
    assert quality(estimate + np.array([bonus, 0.0]), score) == 1.0


def test_where_leaving_never_pays_no_training_prompt_leaves() -> None:
    rng = np.random.default_rng(0)
    estimate, score = rng.random((200, 3)), np.tile([1.0, 0.0, 0.0], (200, 1))
    bonus = best_single_bonus(estimate, score, 0)
    assert ((estimate + np.array([bonus, 0.0, 0.0])).argmax(axis=1) == 0).all()


def test_outcomes_that_are_missing_count_for_nothing() -> None:
    estimate = np.tile([0.4, 0.6], (50, 1))
    score = np.tile([1.0, np.nan], (50, 1))
    assert best_single_bonus(estimate, score, 0) == pytest.approx(0.2)
    assert best_single_bonus(estimate, np.full((50, 2), np.nan), 0) == 0.0
