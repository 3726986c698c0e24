"""What every prompt router must do; a new router joins by standing in the catalogue."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts import routers
from crossroads.prompts.router import PromptRouter, Queries, TrainingSet
from crossroads.prompts.routers import build_router, router_class, router_names
from tests.prompts.routers.tables import argmax_quality, change, outcomes, queries, take

NAMES = router_names()
HINDSIGHT = [name for name in NAMES if router_class(name).hindsight]
BLIND = [name for name in NAMES if not router_class(name).needs_embeddings]
SIGHTED = [name for name in NAMES if router_class(name).needs_embeddings]
LEARNERS = [name for name in NAMES if router_class(name).method != "none"]
HEAVY = {"sklearn", "lightgbm", "torch", "transformers", "pandas"}

every_router = pytest.mark.parametrize("name", NAMES)


def fit(name: str, data: TrainingSet, seed: int = 0) -> PromptRouter:
    return build_router(name).fit(data, seed=seed)


@cache
def usual(name: str, num_models: int = 3) -> PromptRouter:
    """Fitted on the usual table. Tests only predict with it."""
    return fit(name, outcomes(num_models=num_models))


def asked(name: str, num_models: int = 3) -> Queries:
    return queries(outcomes(50, num_models, seed=1), router_class(name))


def estimate_well_formed(router: PromptRouter, data: TrainingSet) -> np.ndarray:
    """Predict, having checked shape, type and finiteness."""
    estimate = router.predict(queries(data, router))
    assert estimate.shape == (len(data), len(router.models))
    assert estimate.dtype == np.float64
    assert np.isfinite(estimate).all()
    return estimate


def learn(name: str, data: TrainingSet, unseen: TrainingSet | None = None) -> np.ndarray:
    """Fit on a difficult table, return well-formed estimates of the usual prompts."""
    if unseen is None:
        unseen = outcomes(20, len(data.models), num_features=data.embeddings.shape[1], seed=1)
    router = fit(name, data)
    estimate_well_formed(router, data)
    return estimate_well_formed(router, unseen)


def restored(router: PromptRouter, folder: Path) -> PromptRouter:
    """The same router by way of a file."""
    np.savez(folder / "state.npz", **router.state())
    with np.load(folder / "state.npz", allow_pickle=False) as file:
        arrays = dict(file)
    return type(router).restore(models=router.models, settings=router.settings, arrays=arrays)


@every_router
def test_the_name_is_the_module_name_with_dashes(name: str) -> None:
    cls = router_class(name)
    assert cls.name == name
    if cls.__module__.startswith(routers.__name__):
        assert cls.__module__.rpartition(".")[2] == name.replace("-", "_")


@every_router
def test_a_router_says_what_it_is_in_one_line(name: str) -> None:
    cls = router_class(name)
    assert 10 < len(cls.summary) < 80
    assert "\n" not in cls.summary
    assert inspect.getdoc(cls)
    for fact in (cls.timing, cls.method, cls.needs, cls.adding_a_model):
        assert fact


@every_router
def test_each_setting_is_explained(name: str) -> None:
    doc = inspect.getdoc(router_class(name)) or ""
    for setting in build_router(name).settings:
        assert setting in doc.partition("Parameters")[2]


@every_router
def test_settings_are_plain_data_and_build_the_same_router(name: str) -> None:
    router = build_router(name)
    read = json.loads(json.dumps(router.settings))
    assert read.keys() == router.settings.keys()
    plain = {key: tuple(v) if isinstance(v, list) else v for key, v in read.items()}
    assert type(router)(**plain).settings == router.settings


@every_router
@pytest.mark.parametrize("num_models", [1, 2, 5])
def test_estimates_are_finite_for_any_number_of_models(name: str, num_models: int) -> None:
    data = outcomes(60, num_models, num_features=32, num_domains=3)
    router = fit(name, data)
    assert router.models == data.models
    estimate_well_formed(router, data)


@every_router
def test_fit_returns_the_router(name: str) -> None:
    router = build_router(name)
    assert router.fit(outcomes(20)) is router


@every_router
def test_the_same_seed_fits_the_same_router(name: str) -> None:
    again = fit(name, outcomes()).predict(asked(name))
    np.testing.assert_array_equal(again, usual(name).predict(asked(name)))


@every_router
def test_fitting_again_forgets_what_was_learnt(name: str) -> None:
    router = fit(name, outcomes(60, 5, seed=7)).fit(outcomes())
    np.testing.assert_array_equal(router.predict(asked(name)), usual(name).predict(asked(name)))


@every_router
def test_predicting_changes_nothing(name: str) -> None:
    router = fit(name, outcomes())
    first = router.predict(asked(name))
    first_copy = first.copy()
    first += 1.0  # what is handed out belongs to the caller
    router.predict(take(asked(name), slice(0, 1)))
    np.testing.assert_array_equal(router.predict(asked(name)), first_copy)


@every_router
def test_inputs_are_left_as_they_were(name: str) -> None:
    data, untouched = outcomes(missing=0.3), outcomes(missing=0.3)
    router = fit(name, data)
    router.predict(queries(data, router))
    for column in ("embeddings", "scores", "costs", "domains", "texts"):
        np.testing.assert_array_equal(getattr(data, column), getattr(untouched, column))


@every_router
def test_what_was_learnt_does_not_follow_later_changes_of_the_table(name: str) -> None:
    data = outcomes()
    router = fit(name, data)
    data.scores[:] = 0.5
    data.embeddings[:] = 0.0
    data.costs[:] = 1.0
    np.testing.assert_array_equal(router.predict(asked(name)), usual(name).predict(asked(name)))


@every_router
def test_a_prompt_is_estimated_alike_in_any_batch(name: str) -> None:
    whole = usual(name).predict(asked(name))
    alone = [usual(name).predict(take(asked(name), [i]))[0] for i in range(len(whole))]
    np.testing.assert_allclose(whole, alone, rtol=0, atol=1e-6)


@every_router
def test_the_order_of_the_prompts_does_not_matter(name: str) -> None:
    order = np.random.default_rng(3).permutation(50)
    permuted = usual(name).predict(take(asked(name), order))
    np.testing.assert_allclose(permuted, usual(name).predict(asked(name))[order], atol=1e-6)


@every_router
def test_no_prompts_have_no_estimates(name: str) -> None:
    assert usual(name).predict(take(asked(name), slice(0, 0))).shape == (0, 3)


@every_router
def test_missing_cells_are_no_obstacle(name: str) -> None:
    learn(name, outcomes(missing=0.3))
    learn(name, outcomes(100, 5, missing=0.8))


@every_router
def test_without_domains_a_router_works_or_asks_for_them(name: str) -> None:
    data = change(outcomes(), domains=None)
    if router_class(name).needs_domains:
        with pytest.raises(InputError, match="'domain' column"):
            fit(name, data)
    else:
        learn(name, data)


@every_router
def test_domains_are_not_needed_to_serve(name: str) -> None:
    learn(name, outcomes(), change(outcomes(20, seed=1), domains=None))


@every_router
def test_the_true_domains_change_no_estimate(name: str) -> None:
    masked = dataclasses.replace(asked(name), domains=None)
    told = dataclasses.replace(masked, domains=outcomes(50, seed=1).domains)
    np.testing.assert_array_equal(usual(name).predict(masked), usual(name).predict(told))


@every_router
@pytest.mark.parametrize("domains", [["one"] * 40, [None, "two"] * 20, [str(i) for i in range(40)]])
def test_odd_domains_are_no_obstacle(name: str, domains: list[Any]) -> None:
    learn(name, change(outcomes(40), domains=np.array(domains, dtype=object)))


@every_router
@pytest.mark.parametrize("in_training", [True, False])
@pytest.mark.parametrize("in_serving", [True, False])
def test_texts_may_be_absent(name: str, in_training: bool, in_serving: bool) -> None:
    data, unseen = outcomes(), outcomes(20, seed=1)
    learn(
        name,
        data if in_training else change(data, texts=None),
        unseen if in_serving else change(unseen, texts=None),
    )


@every_router
def test_odd_texts_are_no_obstacle(name: str) -> None:
    odd = ["", " \n\t", "caf\u00e9 \u4f60\u597d \U0001f600", "x" * 5000, "\ud800", "a\0b", "1", "?"]
    learn(name, change(outcomes(40), texts=np.array(odd * 5, dtype=object)))
    learn(name, outcomes(40), change(outcomes(8), texts=np.array(odd, dtype=object)))


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(HINDSIGHT)))
def test_equal_prompts_get_equal_estimates(name: str) -> None:
    data = outcomes(60).take(np.repeat(np.arange(5), 12))
    estimate = learn(name, data, data)
    np.testing.assert_allclose(estimate, estimate[::12].repeat(12, axis=0), atol=1e-6)


@every_router
def test_embeddings_of_length_zero_are_no_obstacle(name: str) -> None:
    data = outcomes()
    learn(name, change(data, embeddings=np.zeros_like(data.embeddings)))
    some = data.embeddings.copy()
    some[::3] = 0.0
    learn(name, change(data, embeddings=some))


@every_router
@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_scores_that_never_vary_are_no_obstacle(name: str, score: float) -> None:
    learn(name, change(outcomes(), scores=np.full((80, 3), score, dtype=np.float32)))


@every_router
@pytest.mark.parametrize("num_prompts", [1, 2, 10])
@pytest.mark.parametrize("num_models", [1, 3])
def test_a_few_prompts_are_enough(name: str, num_prompts: int, num_models: int) -> None:
    data = outcomes(num_prompts, num_models)
    learn(name, change(data, scores=np.nan_to_num(data.scores)))


@every_router
def test_unknown_costs_are_no_obstacle(name: str) -> None:
    learn(name, change(outcomes(), costs=np.full((80, 3), np.nan)))


@every_router
def test_the_state_is_arrays_without_objects(name: str) -> None:
    for key, array in usual(name).state().items():
        assert key.isidentifier()
        assert isinstance(array, np.ndarray)
        assert not array.dtype.hasobject


@every_router
def test_a_restored_router_estimates_the_same(name: str, tmp_path: Path) -> None:
    for data in (outcomes(), outcomes(10, 1), change(outcomes(missing=0.3), texts=None)):
        router = fit(name, data)
        copy = restored(router, tmp_path)
        assert copy.models == router.models
        assert copy.settings == router.settings
        asked = queries(data, router)
        np.testing.assert_allclose(copy.predict(asked), router.predict(asked), rtol=0, atol=1e-9)
        assert copy.state().keys() == router.state().keys()


def odd_settings() -> list[str]:
    """Each numeric setting of each router at values nobody should choose."""
    specs = []
    for name in NAMES:
        for setting, default in build_router(name).settings.items():
            odd = {int: ("-1", "0", "1", "1000"), float: ("-1", "0", "nan", "inf", "-inf", "3")}
            specs += [f"{name}:{setting}={value}" for value in odd.get(type(default), ())]
    return specs


@pytest.mark.parametrize("spec", odd_settings())
def test_an_odd_setting_is_refused_or_works(spec: str) -> None:
    try:
        router = build_router(spec)
    except UsageError as refusal:
        name, setting, value = re.split("[:=]", spec)
        assert f"router {name!r}: expected" in str(refusal)
        assert setting in str(refusal)
        assert value in str(refusal)
        assert "\n" not in str(refusal)
    else:
        estimate_well_formed(router.fit(outcomes()), outcomes(20, seed=1))


SERVE = """
import json, sys
from pathlib import Path
import numpy as np
from crossroads.prompts.router import Queries
from crossroads.prompts.routers import router_class

name, folder = sys.argv[1], Path(sys.argv[2])
given = json.loads((folder / "header.json").read_text())
settings = {k: tuple(v) if isinstance(v, list) else v for k, v in given["settings"].items()}
with np.load(folder / "state.npz", allow_pickle=False) as file:
    router = router_class(name).restore(
        models=tuple(given["models"]), settings=settings, arrays=dict(file))
with np.load(folder / "asked.npz", allow_pickle=False) as file:
    columns = {k: v.astype(object) if v.dtype.kind == "U" else v for k, v in file.items()}
np.save(folder / "estimate.npy", router.predict(Queries(**columns)))
print(json.dumps(sorted({module.partition(".")[0] for module in sys.modules})))
"""


@every_router
def test_another_process_serves_the_same_without_training_libraries(
    name: str, tmp_path: Path
) -> None:
    router, prompts = usual(name), asked(name)
    header = {"models": router.models, "settings": router.settings}
    (tmp_path / "header.json").write_text(json.dumps(header))
    np.savez(tmp_path / "state.npz", **router.state())
    columns = {key: value for key, value in vars(prompts).items() if value is not None}
    texts = {key: columns.pop(key).astype(np.str_) for key in ("texts", "domains")}
    np.savez(tmp_path / "asked.npz", **columns, **texts)
    done = subprocess.run(
        [sys.executable, "-c", SERVE, name, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    )
    estimate = np.load(tmp_path / "estimate.npy", allow_pickle=False)
    np.testing.assert_allclose(estimate, router.predict(prompts), rtol=0, atol=1e-9)
    assert not HEAVY & set(json.loads(done.stdout))


@every_router
def test_an_unfitted_router_says_so(name: str) -> None:
    with pytest.raises(InputError, match="not fitted"):
        build_router(name).predict(asked(name))


@pytest.mark.parametrize("name", HINDSIGHT)
def test_hindsight_needs_the_answers(name: str) -> None:
    without = Queries(embeddings=outcomes().embeddings)
    with pytest.raises(InputError, match="hindsight"):
        usual(name).predict(without)


@every_router
def test_an_empty_table_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="training set is empty"):
        fit(name, outcomes().take(np.arange(0)))


@every_router
def test_a_model_never_run_is_named(name: str) -> None:
    data = outcomes()
    data.scores[:, 1] = np.nan
    with pytest.raises(InputError, match="no training outcome for model-1;"):
        fit(name, data)


@every_router
def test_columns_must_match_the_models(name: str) -> None:
    with pytest.raises(InputError, match="3 score columns for 2 models"):
        fit(name, change(outcomes(), models=("a", "b")))


@pytest.mark.parametrize("name", SIGHTED)
def test_embeddings_must_match_the_scores(name: str) -> None:
    data = outcomes(60)
    with pytest.raises(InputError, match=r"50 .*60|60 .*50"):
        fit(name, change(data, embeddings=data.embeddings[:50]))


@pytest.mark.parametrize("name", SIGHTED)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_no_numbers_are_refused(name: str, value: float) -> None:
    data = outcomes()
    data.embeddings[3, 2] = value
    with pytest.raises(InputError, match="embeddings hold NaN or infinity"):
        fit(name, data)


@pytest.mark.parametrize("name", BLIND)
def test_a_router_that_needs_no_embeddings_does_not_look_at_them(name: str) -> None:
    data, prompts = outcomes(), outcomes(50, seed=1)
    without = fit(name, change(data, embeddings=np.full((80, 1), np.nan, dtype=np.float32)))
    blank = queries(change(prompts, embeddings=np.zeros((50, 1), dtype=np.float32)), without)
    np.testing.assert_array_equal(without.predict(blank), usual(name).predict(asked(name)))


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_a_learner_sends_prompts_to_the_specialist_of_their_domain(
    name: str, missing: float
) -> None:
    data = outcomes(200, 2, missing=missing, skill=0.95)
    unseen = outcomes(200, 2, seed=1, skill=0.95)
    best = argmax_quality(unseen.scores, unseen)
    single = float(unseen.scores.mean(axis=0).max())
    quality = argmax_quality(learn(name, data, unseen), unseen)
    assert quality >= 0.9 * best > single
