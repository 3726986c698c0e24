from __future__ import annotations

import numpy as np
import pytest

from crossroads.prompts.composition.classify import CLASSIFIERS, CategoryModel
from crossroads.prompts.router import Queries
from crossroads.prompts.stacking import grouped_folds
from tests.prompts.routers.tables import change, outcomes

KINDS = pytest.mark.parametrize("kind", CLASSIFIERS)


def learn(kind: str, code: np.ndarray, num_prompts: int = 120) -> tuple[CategoryModel, np.ndarray]:
    data = outcomes(num_prompts, 2)
    fold = grouped_folds(data.embeddings, 4, np.random.default_rng(0))
    model = CategoryModel(kind)
    return model, model.fit(data, code, 2, fold)


def true_codes(num_prompts: int = 120, seed: int = 0) -> np.ndarray:
    return (outcomes(num_prompts, 2, seed=seed).domains == "law").astype(np.intp)


@KINDS
def test_held_out_and_new_prompts_are_told_apart(kind: str) -> None:
    model, held = learn(kind, true_codes())
    assert (held.argmax(axis=1) == true_codes()).mean() > 0.9
    new = outcomes(100, 2, seed=1)
    told = model.probabilities(Queries(embeddings=new.embeddings, texts=new.texts))
    np.testing.assert_allclose(told.sum(axis=1), 1.0)
    assert (told.argmax(axis=1) == true_codes(100, seed=1)).mean() > 0.9


@KINDS
def test_labels_of_noise_are_not_learnt_out_of_fold(kind: str) -> None:
    noise = np.random.default_rng(0).integers(2, size=120)
    data = change(outcomes(120, 2, num_domains=1), texts=None)
    fold = grouped_folds(data.embeddings, 4, np.random.default_rng(0))
    held = CategoryModel(kind).fit(data, noise, 2, fold)
    assert (held.argmax(axis=1) == noise).mean() < 0.65


@KINDS
def test_ten_labels_are_expanded_to_the_others(kind: str) -> None:
    code = np.where(np.arange(120) < 20, true_codes(), -1)
    _, held = learn(kind, code)
    assert held.shape == (120, 2)
    assert (held.argmax(axis=1) == true_codes()).mean() > 0.9


@KINDS
def test_a_restored_model_says_the_same(kind: str) -> None:
    model, _ = learn(kind, true_codes())
    asked = Queries(embeddings=outcomes(9, 2, seed=1).embeddings)
    again = CategoryModel.restore(kind, model.state())
    np.testing.assert_array_equal(again.probabilities(asked), model.probabilities(asked))


@KINDS
def test_a_single_category_is_certain(kind: str) -> None:
    data = outcomes(20, 2)
    model = CategoryModel(kind)
    assert (model.fit(data, np.zeros(20, dtype=np.intp), 1, np.zeros(20, dtype=np.intp)) == 1).all()
    again = CategoryModel.restore(kind, model.state())
    assert again.probabilities(Queries(embeddings=data.embeddings)).shape == (20, 1)
