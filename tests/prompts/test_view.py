from __future__ import annotations

import numpy as np
import pytest

from crossroads.prompts.router import Queries
from crossroads.prompts.view import PromptReader
from tests.prompts.routers.tables import change, outcomes


def asked(data, texts: bool = True) -> Queries:
    return Queries(embeddings=data.embeddings, texts=data.texts if texts else None)


def test_training_prompts_are_centred_and_standardised() -> None:
    data = outcomes(100)
    view = PromptReader().fit(data)
    np.testing.assert_allclose(view.centred.mean(axis=0), 0.0, atol=1e-9)
    spread = view.style.std(axis=0)
    assert np.abs(view.style.mean(axis=0)).max() < 0.2  # but for what was clipped
    assert ((spread == 0) | (spread > 0.5)).all()
    assert spread.any()


def test_axes_are_ordered_by_spread_and_orthogonal() -> None:
    view = PromptReader().fit(outcomes(100))
    covariance = view.principal.T @ view.principal
    spread = np.diag(covariance)
    assert (np.diff(spread) <= 1e-9).all()
    np.testing.assert_allclose(covariance - np.diag(spread), 0.0, atol=1e-8)


def test_reading_the_training_prompts_again_gives_the_same_view() -> None:
    data = outcomes(50)
    reader = PromptReader()
    first, again = reader.fit(data), reader.read(asked(data))
    np.testing.assert_allclose(again.centred, first.centred, atol=1e-12)
    np.testing.assert_array_equal(again.style, first.style)
    assert again.wording is not None


@pytest.mark.parametrize("where", ["training", "query"])
def test_without_texts_style_is_at_its_mean(where: str) -> None:
    data = outcomes(50)
    reader = PromptReader()
    reader.fit(change(data, texts=None) if where == "training" else data)
    view = reader.read(asked(data, texts=where == "training"))
    assert not view.style.any()
    assert view.wording is None


def test_an_unheard_of_style_is_held_back() -> None:
    reader = PromptReader()
    data = outcomes(50)
    reader.fit(data)
    odd = Queries(embeddings=data.embeddings[:1], texts=np.array(["$" * 3000], dtype=object))
    assert np.abs(reader.read(odd).style).max() <= 4.0


def test_its_state_rebuilds_it() -> None:
    data = outcomes(50)
    reader = PromptReader()
    reader.fit(data)
    again = PromptReader.restore(reader.state()).read(asked(data))
    np.testing.assert_array_equal(again.principal, reader.read(asked(data)).principal)
    np.testing.assert_array_equal(again.style, reader.read(asked(data)).style)
