from __future__ import annotations

import numpy as np
import pytest

from crossroads.prompts.members import Landmarks, domains_design, fit_words, linear_design
from crossroads.prompts.stacking import grouped_folds
from crossroads.prompts.view import PromptReader, PromptView
from crossroads.prompts.wording import NUM_STYLES
from tests.prompts.routers.tables import outcomes


def seen(num_labels: int, count: int = 80) -> tuple[PromptView, np.ndarray]:
    view = PromptReader().fit(outcomes(count, num_features=32))
    label = np.random.default_rng(0).dirichlet(np.ones(num_labels), count) if num_labels else None
    return view, np.zeros((count, 0)) if label is None else label


def test_labels_meet_every_axis() -> None:
    view, label = seen(3)
    design = domains_design(view, label)
    assert design.shape == (80, 3 + 3 * 16)
    np.testing.assert_allclose(design[:, 3:].reshape(80, 3, 16)[:, 1, 4],
                               label[:, 1] * view.principal[:, 4])  # fmt: skip


@pytest.mark.parametrize("num_labels", [40, 64])
def test_many_labels_meet_fewer_axes(num_labels: int) -> None:
    view, label = seen(num_labels)
    assert domains_design(view, label).shape[1] <= 512


def test_without_labels_there_is_nothing_to_cross() -> None:
    view, label = seen(0)
    assert domains_design(view, label).shape == (80, 0)
    assert linear_design(view, label).shape == (80, 32 + NUM_STYLES)


def test_a_bump_is_one_at_its_centre_and_falls_with_distance() -> None:
    view, label = seen(3)
    fitted = Landmarks.fit(view, label, 400, np.random.default_rng(0))
    assert len(fitted.centres) == 20  # four prompts a centre
    design = fitted.design(view, label)
    assert ((design > 0) & (design <= 1)).all()
    here = Landmarks(centres=Landmarks._points(view, label)[:5], sharpness=3.0)
    np.testing.assert_allclose(np.diag(here.design(view, label)[:5]), 1.0, atol=1e-9)


def test_a_cloud_of_copies_has_a_landmark() -> None:
    one = outcomes(1)
    view = PromptReader().fit(one.take(np.zeros(12, dtype=int)))
    fitted = Landmarks.fit(view, np.zeros((12, 0)), 400, np.random.default_rng(0))
    np.testing.assert_allclose(fitted.design(view, np.zeros((12, 0))), 1.0)


def test_words_predict_deviations_out_of_fold() -> None:
    data = outcomes(200, 2, skill=0.95)
    view = PromptReader().fit(data)
    deviation = data.scores - data.mean_scores()
    fold = grouped_folds(data.embeddings, 4, np.random.default_rng(0))
    assert view.wording is not None
    table, held_out = fit_words(view.wording, deviation, fold)
    for prediction in (held_out, view.wording.sums(table)):
        assert ((prediction > 0) == (deviation > 0)).mean() > 0.9


def test_words_leave_out_missing_cells() -> None:
    data = outcomes(200, 2, skill=0.95, missing=0.4)
    view = PromptReader().fit(data)
    fold = grouped_folds(data.embeddings, 4, np.random.default_rng(0))
    assert view.wording is not None
    _, held_out = fit_words(view.wording, data.scores - data.mean_scores(), fold)
    known = np.isfinite(data.scores)
    right = (held_out > 0) == (data.scores > 0.5)
    assert right[known].mean() > 0.85
