from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.composition import BudgetError
from crossroads.prompts.decide import MaxCost
from crossroads.prompts.explain import reason
from crossroads.prompts.fitted import fit_router, load_router, save_router
from crossroads.prompts.pool import Pool
from crossroads.prompts.router import Queries, TrainingSet
from crossroads.prompts.routers import build_router
from crossroads.prompts.routers.composition import NOT_KEPT, CompositionOfExperts
from tests.prompts.routers.tables import argmax_quality, change, outcomes, queries
from tests.prompts.toy import toy_table

SIZES = ("model-0=1B", "model-1=3B", "model-2=2B")


def fitted(data: TrainingSet, **settings: object) -> CompositionOfExperts:
    return CompositionOfExperts(**settings).fit(data)  # type: ignore[arg-type]


def test_each_category_goes_to_its_specialist() -> None:
    router = fitted(outcomes(200, 2))
    assert router.mapping == {"algebra": "model-0", "law": "model-1"}
    assert router.kept == ("model-0", "model-1")
    assert np.isnan(router.total_parameters)


def test_an_expert_outside_the_budget_is_never_chosen() -> None:
    data = outcomes(200, 3)
    router = fitted(data, budget="3B", sizes=SIZES)
    assert router.total_parameters <= 3e9
    estimate = router.predict(queries(data, router))
    outside = [m not in router.kept for m in data.models]
    assert (estimate[:, outside] == NOT_KEPT).all()
    assert (estimate[:, ~np.array(outside)] >= 0).all()


@pytest.mark.parametrize("usd", [0.0, 0.001, 0.02, 1.0])
def test_a_cost_limit_never_buys_an_expert_that_was_not_kept(usd: float) -> None:
    data = outcomes(200, 3)
    router = fitted(data, budget="3B", sizes=SIZES)
    kept = np.array([m in router.kept for m in data.models])
    assert not kept.all()
    cost = np.where(kept, 0.01, 0.001)  # what was not kept is cheaper
    rule, estimate = MaxCost(usd), router.predict(queries(data, router))
    choice = rule.choose(estimate, cost)
    assert kept[choice].all()
    said = reason(rule, data.models, estimate[0], cost, int(choice[0]))
    limit = "no model costs at most" if usd < 0.01 else "costing at most"
    assert limit in said
    assert f"the {len(data.models)} models" not in said


def test_a_larger_budget_is_worth_more() -> None:
    data, unseen = outcomes(300, 2), outcomes(300, 2, seed=1)
    sizes = ("model-0=1B", "model-1=3B")
    small, large = (fitted(data, budget=b, sizes=sizes) for b in ("1B", "4B"))
    asked = queries(unseen, large)
    gain = argmax_quality(large.predict(asked), unseen) - argmax_quality(
        small.predict(asked), unseen
    )
    assert gain > 0.2
    assert small.active_parameters(asked) == 1e9
    assert 1e9 < large.active_parameters(asked) < 3e9


def test_sizes_come_from_settings_a_pool_file_or_the_names(tmp_path: Path) -> None:
    data = outcomes(100, 2)
    cards = tmp_path / "pool.yaml"
    cards.write_text(
        "models: [{name: model-0, parameters: 1.0e+9}, {name: model-1, parameters: 3.0e+9}]"
    )
    assert fitted(data, budget="4B", pool=str(cards)).total_parameters == 4e9
    named = change(data, models=("small-1B", "large-3B"))
    assert fitted(named, budget="4B").total_parameters == 4e9
    spec = "composition:budget=4B:sizes=model-0=1B+model-1=3B"
    assert build_router(spec).fit(data).total_parameters == 4e9  # type: ignore[attr-defined]


def test_a_budget_without_sizes_names_the_models() -> None:
    with pytest.raises(InputError, match="no size known of model-0, model-1; give it as sizes="):
        fitted(outcomes(40, 2), budget="4B")


def test_a_budget_nobody_fits_names_the_smallest_that_one_does() -> None:
    with pytest.raises(BudgetError, match="smallest feasible budget is 1B"):
        fitted(outcomes(40, 3), budget="500M", sizes=SIZES)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("budget=much", "budget: expected a number of parameters like 7B"),
        ("sizes=7B", "sizes: expected NAME=SIZE"),
        ("weighting=firm", "unknown weighting of router 'composition': 'firm'"),
        ("classifier=trees", "unknown classifier of router 'composition': 'trees'"),
        ("confidence=full", "unknown confidence of router 'composition': 'full'"),
        ("shrink=-1", "expected shrink >= 0, got -1"),
    ],
)
def test_wrong_settings_are_refused(spec: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        build_router(f"composition:{spec}")


@pytest.mark.parametrize("classifier", ["linear", "neighbours"])
@pytest.mark.parametrize("weighting", ["hard", "soft"])
@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("confidence", ["share", "entropy"])
def test_every_variant_routes_to_specialists_and_survives_storage(
    classifier: str, weighting: str, robust: bool, confidence: str
) -> None:
    data, unseen = outcomes(200, 2), outcomes(200, 2, seed=1)
    router = fitted(
        data, classifier=classifier, weighting=weighting, robust=robust, confidence=confidence
    )
    estimate = router.predict(queries(unseen, router))
    assert argmax_quality(estimate, unseen) > unseen.scores.mean(axis=0).max() + 0.2
    copy = CompositionOfExperts.restore(
        models=router.models, settings=router.settings, arrays=router.state()
    )
    np.testing.assert_array_equal(copy.predict(queries(unseen, copy)), estimate)
    assert copy.mapping == router.mapping


def test_prompts_without_a_category_are_given_one() -> None:
    data, unseen = outcomes(200, 2), outcomes(200, 2, seed=1)
    domains = data.domains.copy()
    domains[30:] = None
    router = fitted(change(data, domains=domains))
    assert router.mapping == {"algebra": "model-0", "law": "model-1"}
    quality = argmax_quality(router.predict(queries(unseen, router)), unseen)
    assert quality > unseen.scores.mean(axis=0).max() + 0.2


def test_the_robust_variant_sends_the_uncertain_to_the_general_expert() -> None:
    """Four directions, a specialist each; a generalist is best where none of them is at home."""
    rng = np.random.default_rng(0)
    direction = np.arange(600) % 4
    rows = np.eye(16)[direction] + rng.normal(scale=0.05, size=(600, 16))
    scores = np.eye(4)[direction] * 0.8
    data = change(
        outcomes(600, 5),
        embeddings=(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32),
        scores=np.column_stack([scores, np.full(600, 0.7)]).astype(np.float32),
        domains=np.array(list("abcd"), dtype=object)[direction],
        texts=None,
    )
    plain, robust = fitted(data), fitted(data, robust=True)
    nowhere = rng.normal(size=(50, 16))
    nowhere[:, :4] = 0.0
    nowhere /= np.linalg.norm(nowhere, axis=1, keepdims=True)
    strange = Queries(embeddings=nowhere.astype(np.float32))
    known = queries(data, robust)
    assert robust.mapping["(uncertain)"] == "model-4"
    assert (robust.predict(strange).argmax(axis=1) == 4).all()
    assert (plain.predict(strange).argmax(axis=1) != 4).all()
    assert (robust.predict(known).argmax(axis=1) == direction).mean() > 0.99


def test_a_composition_is_fitted_saved_and_loaded_like_any_router(tmp_path: Path) -> None:
    table = toy_table(20)
    spec = "composition:budget=4B:sizes=cook=1B+astronomer=3B+generalist=2B"
    saved = fit_router(spec, table, pool=Pool.of(table.models))
    save_router(saved, tmp_path / "router")
    router = load_router(tmp_path / "router").router
    assert isinstance(router, CompositionOfExperts)
    assert router.mapping == {"cooking": "cook", "space": "astronomer"}
    assert router.total_parameters == 4e9
    assert saved.metrics["quality"] > saved.metrics["best_single_quality"]
