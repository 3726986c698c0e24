from __future__ import annotations

import lightgbm
import numpy as np
import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.trees import Forest

SETTINGS = {"num_leaves": 7, "min_data_in_leaf": 5, "verbose": -1, "num_threads": 1}


def grown(num_outputs: int = 3) -> tuple[np.ndarray, list[lightgbm.Booster]]:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((300, 6))
    targets = np.sin(features @ rng.standard_normal((6, num_outputs)))
    dataset = [lightgbm.Dataset(features, y, params=SETTINGS) for y in targets.T]
    return features, [lightgbm.train(SETTINGS, d, 20) for d in dataset]


def test_predictions_are_those_of_lightgbm() -> None:
    features, boosters = grown()
    forest = Forest.of([booster.dump_model() for booster in boosters])
    unseen = np.random.default_rng(1).standard_normal((100, 6))
    for asked in (features, unseen, unseen[:1], unseen[:0]):
        expected = [b.predict(asked) for b in boosters] if len(asked) else np.zeros((3, 0))
        np.testing.assert_allclose(forest.predict(asked, 3), np.stack(expected, axis=1), atol=1e-12)


def test_an_output_without_trees_is_zero() -> None:
    features, (first, _, last) = grown()
    forest = Forest.of([first.dump_model(), {"tree_info": []}, last.dump_model()])
    predicted = forest.predict(features, 3)
    np.testing.assert_array_equal(predicted[:, 1], 0.0)
    np.testing.assert_allclose(predicted[:, 2], last.predict(features), atol=1e-12)
    assert not Forest.of([{"tree_info": []}]).predict(features, 1).any()


def test_saved_trees_predict_the_same() -> None:
    features, boosters = grown()
    forest = Forest.of([booster.dump_model() for booster in boosters])
    again = Forest.restore(forest.state(), num_features=6, num_outputs=3)
    np.testing.assert_array_equal(again.predict(features, 3), forest.predict(features, 3))


@pytest.mark.parametrize("name", ["left", "right", "feature", "root", "owner"])
@pytest.mark.parametrize("value", [-7, 0, 10**6])
def test_damaged_trees_are_refused_or_harmless(name: str, value: int) -> None:
    features, boosters = grown()
    state = Forest.of([booster.dump_model() for booster in boosters]).state()
    state = {key: array.copy() for key, array in state.items()}
    state[f"trees_{name}"][:] = value
    try:
        forest = Forest.restore(state, num_features=6, num_outputs=3)
    except InputError as error:
        assert "damaged" in str(error)
    else:
        assert np.isfinite(forest.predict(features, 3)).all()
