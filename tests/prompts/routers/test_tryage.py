from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.routers.tryage import Tryage
from tests.prompts.routers.tables import argmax_quality, change, crossed, outcomes, queries


def test_untrained_it_is_the_best_single_model() -> None:
    data = outcomes(100, 4)
    estimate = Tryage(epochs=0).fit(data).predict(queries(data, Tryage))
    np.testing.assert_allclose(estimate, np.tile(data.mean_scores(), (100, 1)), atol=1e-6)


def test_where_prompts_say_nothing_it_stays_the_best_single_model() -> None:
    data = outcomes(200, 3)
    blank = change(data, embeddings=np.zeros_like(data.embeddings))
    choice = Tryage().fit(blank).predict(queries(blank, Tryage)).argmax(axis=1)
    assert (choice == data.mean_scores().argmax()).all()


def test_it_learns_what_no_linear_estimate_can() -> None:
    unseen = crossed(seed=1)
    router = Tryage(epochs=60).fit(crossed())
    assert argmax_quality(router.predict(queries(unseen, router)), unseen) > 0.8


@pytest.mark.parametrize("setting", ["hidden", "batch", "patience"])
def test_counts_below_one_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match=f"router 'tryage': expected .*{setting}"):
        Tryage(**{setting: 0})


def test_a_decay_that_would_overshoot_is_refused() -> None:
    with pytest.raises(UsageError, match="decay from 0 to 1 / rate"):
        Tryage(rate=0.1, decay=11.0)
