from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossroads.core.errors import CrossroadsError, InputError, UsageError, unknown_name
from crossroads.core.statistics import bootstrap_interval
from crossroads.models.encoders import get_encoder
from crossroads.prompts import fitted as module
from crossroads.prompts.artefact import HEADER, arrays_name
from crossroads.prompts.checking import unicode_text
from crossroads.prompts.decide import Argmax
from crossroads.prompts.fitted import FittedRouter, fit_router, load_router, save_router
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.pool import ModelCard, Pool
from crossroads.prompts.routers import build_router

from .toy import TOYS, toy_table

NAMES = ("cook", "astronomer", "generalist")
POOL = Pool(
    name="toy",
    models=tuple(
        ModelCard(name=n, price_per_call=p) for n, p in zip(NAMES, (1, 2, 3), strict=True)
    ),
)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> type:
        if name not in TOYS:
            raise unknown_name("router", name, TOYS)
        return TOYS[name]

    monkeypatch.setattr(module, "build_router", lambda spec: find(spec)())
    monkeypatch.setattr(module, "router_class", find)


@pytest.fixture(scope="module")
def fitted() -> FittedRouter:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "build_router", lambda spec: TOYS[spec]())
        return fit_router("toy", toy_table())


def test_a_prompt_goes_to_the_model_that_is_right_on_its_kind(fitted: FittedRouter) -> None:
    assert fitted.route("bake a loaf of bread").model == "cook"
    assert fitted.route("the orbit of a comet").model == "astronomer"


def test_texts_and_their_embeddings_are_decided_alike(fitted: FittedRouter) -> None:
    texts = ["boil rice", "rings of Saturn", ""]
    by_text = fitted.decide(texts)
    by_embedding = fitted.decide(get_encoder("static").encode(texts))
    one_by_one = [fitted.route(text) for text in texts]
    for a, b, c in zip(by_text, by_embedding, one_by_one, strict=True):
        assert a.model == b.model == c.model
        assert a.scores == pytest.approx(b.scores, abs=1e-5)
        assert a.scores == pytest.approx(c.scores, abs=1e-5)


def test_a_decision_can_be_explained_and_replayed(fitted: FittedRouter) -> None:
    decision = fitted.route("boil rice", seed=3)
    assert set(decision.scores) == set(NAMES)
    assert decision.rule == "argmax"
    assert decision.reason.startswith("cook has the highest estimated quality")
    assert decision.propensity == 1.0
    assert 0 <= decision.predicted_quality <= 1
    assert decision.predicted_cost_usd == pytest.approx(1e-3)
    ranked = sorted(decision.scores.values())
    assert decision.confidence == pytest.approx(min(ranked[-1] - ranked[-2], 1.0))
    assert decision.seconds > 0
    assert (decision.router, decision.seed) == ("toy", 3)
    assert json.loads(json.dumps(decision.to_dict()))["model"] == "cook"


@pytest.mark.parametrize(
    ("rule", "model"),
    [
        ("argmax", "cook"),
        ("max-cost:0.0005", "generalist"),
        ("tradeoff:100000", "generalist"),
        ("min-quality:0.3", "cook"),
        (Argmax(), "cook"),
    ],
)
def test_the_rule_is_an_argument_of_the_decision(
    rule: Any, model: str, fitted: FittedRouter
) -> None:
    decision = fitted.route("roast a chicken", rule=rule)
    assert decision.model == model
    assert decision.rule == str(rule)


def test_a_floor_takes_the_cheapest_that_is_good_enough(fitted: FittedRouter) -> None:
    # the generalist is right on every other prompt, baking bread among them, and cheapest
    assert fitted.route("bake bread", rule="min-quality:0.6").model == "generalist"


def test_an_unknown_rule_is_refused(fitted: FittedRouter) -> None:
    with pytest.raises(UsageError, match="did you mean 'argmax'"):
        fitted.route("x", rule="argmin")


@pytest.mark.parametrize(
    ("prompts", "problem"),
    [
        ("boil rice", "expected a list of texts, got one str; use route()"),
        (b"boil rice", "got one bytes"),
        (None, "got one NoneType"),
        (7, "got one int"),
        (["boil rice", 3], "number 1 is no text but int"),
        ([b"boil rice"], "number 0 is no text but bytes"),
        ([None], "number 0 is no text but NoneType"),
        (np.array([["a"]]), "texts of shape (N,), got (1, 1)"),
        (np.zeros(256), "expected numbers of shape (N, D), got float64 (256,)"),
        (np.zeros((1, 256), dtype=complex), "expected numbers"),
        (np.zeros((1, 3), dtype=np.float32), "3 wide, encoder 'static' makes them 256 wide"),
        (np.array([[0.0] * 256, [np.nan] * 256]), "row 1 holds NaN or infinity"),
        (np.full((1, 256), 1e300), "row 0 holds NaN or infinity"),
    ],
    ids=str,
)
def test_what_is_no_prompt_is_refused_on_one_line(
    prompts: Any, problem: str, fitted: FittedRouter
) -> None:
    with pytest.raises(InputError) as caught:
        fitted.decide(prompts)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prompt", [None, 3, b"boil rice", ["boil rice"]])
def test_one_prompt_must_be_a_text(prompt: Any, fitted: FittedRouter) -> None:
    with pytest.raises(InputError, match="number 0 is no text"):
        fitted.route(prompt)


def test_arrays_of_texts_are_texts(fitted: FittedRouter) -> None:
    texts = ["boil rice", "rings of Saturn"]
    for array in (np.array(texts), np.array(texts, dtype=object)):
        assert [d.model for d in fitted.decide(array)] == ["cook", "astronomer"]


def test_lone_surrogates_are_replaced(fitted: FittedRouter) -> None:
    decision = fitted.route("boil rice \ud800")
    assert decision.scores == fitted.route("boil rice \ufffd").scores
    assert unicode_text("\ud83d\ude00 \udc00") == "\U0001f600 \ufffd"


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "1", None, True])
def test_a_seed_is_a_small_whole_number(seed: Any, fitted: FittedRouter) -> None:
    with pytest.raises(UsageError, match="seed: expected a whole number"):
        fitted.route("x", seed=seed)
    with pytest.raises(UsageError, match="seed: expected a whole number"):
        fit_router("toy", toy_table(), seed=seed)


@pytest.mark.parametrize("rule", [3, b"argmax", ["argmax"], Argmax])
def test_a_rule_of_another_type_is_refused(rule: Any, fitted: FittedRouter) -> None:
    with pytest.raises(UsageError, match="decision rule: expected text such as 'argmax'"):
        fitted.route("x", rule=rule)
    with pytest.raises(UsageError, match="decision rule: expected text such as 'argmax'"):
        fit_router("toy", toy_table(), rule=rule)


def test_no_prompt_is_no_decision(fitted: FittedRouter) -> None:
    assert fitted.decide([]) == []


def test_metrics_are_those_of_prompts_held_out() -> None:
    table = toy_table(copies=30)
    found = fit_router("toy", table).metrics
    train, test = table.split_by_hash(0)
    assert (found["num_train"], found["num_test"]) == (len(train), len(test))
    best = found["best_single"]
    column = table.models.index(best)
    assert table.score[train].mean(axis=0).argmax() == column
    assert found["best_single_quality"] == pytest.approx(table.score[test, column].mean())
    assert found["quality"] > 0.95
    assert found["gain"] == pytest.approx(found["quality"] - found["best_single_quality"])
    assert found["gain_low"] < found["gain"] < found["gain_high"]
    assert found["gain_low"] > 0
    assert 1e-3 <= found["cost_usd"] <= 2e-3


def uneven_table() -> OutcomeTable:
    """Models are worse, and dearer, on the later half."""
    table = toy_table()
    assert table.cost is not None
    late = np.arange(len(table)) >= len(table) // 2
    score, cost = table.score.copy(), table.cost.copy()
    score[late, 0], cost[late] = 0.0, 1.0
    return replace(table, score=score, cost=cost)


def test_the_saved_router_is_fitted_on_all_prompts() -> None:
    table = uneven_table()
    found = fit_router("toy", table)
    assert found.provenance["num_prompts"] == found.provenance["num_fitted"] == len(table)
    np.testing.assert_allclose(found.router.mean, table.score.mean(axis=0), atol=1e-6)  # type: ignore[attr-defined]
    np.testing.assert_allclose(found.mean_cost, table.cost.mean(axis=0))  # type: ignore[union-attr]


def test_rows_marked_test_are_never_fitted_on() -> None:
    table = uneven_table()
    half = len(table) // 2
    split = np.array(["train"] * half + ["test"] * (len(table) - half), dtype=object)
    found = fit_router("toy", replace(table, split=split))
    assert (found.metrics["num_train"], found.metrics["num_test"]) == (half, len(table) - half)
    assert found.provenance["num_prompts"] == len(table)
    assert found.provenance["num_fitted"] == half
    np.testing.assert_allclose(found.router.mean, table.score[:half].mean(axis=0), atol=1e-6)  # type: ignore[attr-defined]
    np.testing.assert_allclose(found.mean_cost, table.cost[:half].mean(axis=0))  # type: ignore[index]


def test_a_memoriser_of_chance_does_not_look_good_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "build_router", build_router)
    rng = np.random.default_rng(0)
    table = toy_table(copies=60)
    vectors = rng.standard_normal((len(table), 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    score = rng.integers(0, 2, size=table.score.shape).astype(np.float32)
    table = replace(table, score=score, embeddings={"static": vectors})
    found = fit_router("knn:k=1", table).metrics
    assert found["num_test"] > 100
    assert 0.35 < found["quality"] < 0.65
    assert found["gain_low"] < 0 < found["gain_high"]


def test_the_gain_s_interval_is_a_bootstrap_over_the_held_out_prompts() -> None:
    table = toy_table(copies=30)
    found = fit_router("blind", table, rule="tradeoff:1e9", seed=4).metrics  # the cheapest one
    train, test = table.split_by_hash(4)
    best = int(table.score[train].mean(axis=0).argmax())
    low, high = bootstrap_interval(table.score[test, 2] - table.score[test, best], seed=4)
    assert (found["gain_low"], found["gain_high"]) == pytest.approx((low, high))


def test_the_matching_rule_is_as_good_as_the_best_single_model_and_cheapest() -> None:
    table = toy_table(copies=30)
    found = fit_router("toy", table).metrics
    assert found["match_quality"] >= found["best_single_quality"]
    assert found["match_num_test"] == found["num_test"]
    again = fit_router("toy", table, rule=found["match_rule"]).metrics
    assert again["quality"] == pytest.approx(found["match_quality"])
    assert again["cost_usd"] == pytest.approx(
        found["match_cost_ratio"] * found["best_single_cost_usd"]
    )
    assert again["cost_usd"] < found["cost_usd"]
    for price in np.geomspace(1, 1e6, 60):
        other = fit_router("toy", table, rule=f"tradeoff:{price}").metrics
        if other["quality"] >= found["best_single_quality"]:
            assert other["cost_usd"] >= again["cost_usd"] - 1e-12


def test_no_matching_rule_without_a_cost_for_every_model() -> None:
    table = toy_table()
    assert table.cost is not None
    unknown = table.cost.copy()
    unknown[:, 1] = np.nan
    for cost in (None, unknown, np.zeros_like(unknown)):
        found = fit_router("toy", replace(table, cost=cost)).metrics
        assert not [key for key in found if key.startswith("match")]


def test_the_same_seed_fits_the_same_router() -> None:
    one, two = (fit_router("toy", toy_table(), seed=5) for _ in range(2))
    assert one.metrics == two.metrics
    assert one.provenance["seed"] == 5
    for name, array in one.router.state().items():
        np.testing.assert_array_equal(array, two.router.state()[name])


def test_provenance_names_source_and_versions(fitted: FittedRouter) -> None:
    found = fitted.provenance
    assert (found["source"], found["num_prompts"], found["num_models"]) == ("toy", 120, 3)
    assert {"crossroads", "numpy", "python", "date", "seed"} <= set(found)


def test_missing_cells_are_neither_learnt_nor_judged() -> None:
    table = toy_table(copies=30)
    score = table.score.copy()
    score[::3, 0] = np.nan
    score[1] = np.nan
    found = fit_router("toy", replace(table, score=score))
    assert found.provenance["num_prompts"] == len(table) - 1
    assert found.metrics["quality"] > 0.9
    assert np.isfinite(found.metrics["gain"])


def test_a_router_without_embeddings_needs_no_texts() -> None:
    table = replace(toy_table(), texts=None)
    found = fit_router("blind", table)
    assert found.route("anything").model in NAMES
    with pytest.raises(InputError, match="no prompt texts"):
        fit_router("toy", table)


def test_hindsight_cannot_be_fitted_to_serve() -> None:
    with pytest.raises(UsageError, match="decides with hindsight"):
        fit_router("hindsight", toy_table())


def test_a_table_too_small_to_hold_anything_out_is_refused() -> None:
    with pytest.raises(InputError, match="give more distinct prompts"):
        fit_router("toy", toy_table().take(np.array([0])))


def test_costs_come_from_the_pool_where_the_table_has_none() -> None:
    found = fit_router("toy", toy_table(costs=False), pool=POOL)
    assert found.mean_cost.tolist() == [1, 2, 3]
    assert found.pool.names == NAMES
    measured = fit_router("toy", toy_table(), pool=POOL)
    assert measured.mean_cost.tolist() == pytest.approx([1e-3, 2e-3, 1e-4])


def test_without_costs_only_argmax_can_decide() -> None:
    found = fit_router("toy", toy_table(costs=False))
    decision = found.route("boil rice")
    assert decision.model == "cook"
    assert decision.predicted_cost_usd is None
    assert "cost_usd" not in found.metrics
    with pytest.raises(
        UsageError, match="the cost of 'cook' is unknown; fit on a table with costs"
    ):
        found.route("boil rice", rule="max-cost:1")
    with pytest.raises(UsageError, match="unknown; fit on a table with costs"):
        fit_router("toy", toy_table(costs=False), rule="tradeoff:1")


def test_a_pool_that_lacks_a_model_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown model 'generalist'"):
        fit_router("toy", toy_table(), pool=POOL.subset(["cook", "astronomer"]))


def test_a_saved_router_decides_the_same(fitted: FittedRouter, tmp_path: Path) -> None:
    save_router(fitted, tmp_path / "router")
    loaded = load_router(tmp_path / "router")
    texts = ["boil rice", "rings of Saturn", "something else", ""]
    for one, two in zip(fitted.decide(texts), loaded.decide(texts), strict=True):
        assert one.model == two.model
        assert one.scores == two.scores
        assert one.reason == two.reason
    assert loaded.router.settings == fitted.router.settings
    assert loaded.metrics == fitted.metrics
    assert loaded.provenance == fitted.provenance
    assert loaded.pool == fitted.pool
    np.testing.assert_array_equal(loaded.mean_cost, fitted.mean_cost)


def test_unknown_costs_and_the_default_rule_are_kept(tmp_path: Path) -> None:
    table = toy_table()
    assert table.cost is not None
    cost = table.cost.copy()
    cost[:, 1] = np.nan
    found = fit_router("toy", replace(table, cost=cost))
    save_router(found, tmp_path)
    assert np.isnan(load_router(tmp_path).mean_cost).tolist() == [False, True, False]
    save_router(fit_router("toy", table, rule="max-cost:0.0012345678"), tmp_path)
    assert load_router(tmp_path).rule == "max-cost:0.0012345678"


def test_keys_are_kept_only_as_references(tmp_path: Path) -> None:
    keys = ("sk-secret", "${MY_KEY}", None)
    cards = [c.model_copy(update={"api_key": k}) for c, k in zip(POOL, keys, strict=True)]
    pool = POOL.model_copy(update={"models": tuple(cards)})
    save_router(fit_router("toy", toy_table(), pool=pool), tmp_path)
    assert "sk-secret" not in (tmp_path / HEADER).read_text()
    assert [card.api_key for card in load_router(tmp_path).pool] == [None, "${MY_KEY}", None]


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda h: h.pop("router"), "incomplete or altered"),
        (lambda h: h.pop("pool"), "incomplete or altered"),
        (lambda h: h.pop("encoder"), "incomplete or altered"),
        (lambda h: h["router"].pop("settings"), "incomplete or altered"),
        (lambda h: h["router"].update(name="toi"), "did you mean 'toy'"),
        (
            lambda h: h["router"].update(version=9),
            "saved as version 9, this crossroads has version 1",
        ),
        (lambda h: h["router"].update(models=["cook"]), "pool, costs and models disagree"),
        (lambda h: h["router"].update(settings={"none": 1}), "incomplete or altered"),
        (lambda h: h["router"].update(settings=3), "incomplete or altered"),
        (lambda h: h.update(pool={"models": []}), "pool: models"),
        (lambda h: h.update(pool=3), "pool: expected fields and values, got a number"),
        (lambda h: h.update(rule="argmin"), "did you mean 'argmax'"),
        (lambda h: h.update(rule=None), "incomplete or altered"),
        (lambda h: h.update(mean_cost_usd=[1.0, "x", 2.0]), "incomplete or altered"),
        (lambda h: h.update(mean_cost_usd=[1.0, -1.0, 2.0]), "a mean cost of -1.0"),
        (lambda h: h.update(mean_cost_usd=[1.0, float("nan"), 2.0]), "a mean cost of nan"),
        (lambda h: h.update(mean_cost_usd=[1.0, 10**400, 2.0]), "incomplete or altered"),
        (lambda h: h.update(mean_cost_usd=[1.0, True, 2.0]), "a mean cost of True"),
        (lambda h: h.update(provenance=3), "provenance is 3"),
        (lambda h: h.update(metrics=[]), "metrics is []"),
        (lambda h: h["encoder"].update(name=3), "encoder is 3"),
        (lambda h: h.update(rule=3), "incomplete or altered"),
        (lambda h: h["encoder"].update(name="nostatic"), "unknown encoder 'nostatic'"),
        (lambda h: h["encoder"].update(version="other"), "fitted with encoder static other"),
    ],
)
def test_an_altered_header_is_refused_on_one_line(
    change: Change, problem: str, fitted: FittedRouter, tmp_path: Path
) -> None:
    save_router(fitted, tmp_path)
    header = json.loads((tmp_path / HEADER).read_text())
    change(header)
    (tmp_path / HEADER).write_text(json.dumps(header))
    with pytest.raises(CrossroadsError) as caught:
        load_router(tmp_path)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arrays_of_another_router_are_refused(fitted: FittedRouter, tmp_path: Path) -> None:
    save_router(fitted, tmp_path / "one")
    save_router(fit_router("toy", toy_table(costs=False, copies=9)), tmp_path / "two")
    one, two = (
        tmp_path / name / arrays_name(json.loads((tmp_path / name / HEADER).read_text()))
        for name in ("one", "two")
    )
    two.replace(one)
    with pytest.raises(InputError, match=r"damaged or of another router than router\.json"):
        load_router(tmp_path / "one")


def test_a_state_without_its_arrays_is_refused(tmp_path: Path, fitted: FittedRouter) -> None:
    class Forgetful(TOYS["toy"]):  # type: ignore[misc]
        def _state(self) -> dict[str, np.ndarray]:
            return {}

    forgetful = Forgetful()
    forgetful.models = fitted.models
    save_router(replace(fitted, router=forgetful), tmp_path)
    with pytest.raises(InputError, match="incomplete or altered"):
        load_router(tmp_path)


def test_a_missing_encoder_is_named_when_the_router_is_loaded(
    fitted: FittedRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossroads.models import encoders

    save_router(fitted, tmp_path)
    monkeypatch.setattr(encoders, "package_folder", lambda name: None)
    encoders.get_encoder.cache_clear()
    with pytest.raises(CrossroadsError, match="pip install wordllama"):
        load_router(tmp_path)


def test_a_budget_is_met_on_average_and_survives_saving(tmp_path: Path) -> None:
    fitted = fit_router("toy", toy_table(copies=60), rule="budget:0.0008")
    texts = [str(t) for t in toy_table(copies=60).texts]
    decisions = fitted.decide(texts)
    spent = np.mean([d.predicted_cost_usd for d in decisions])
    assert spent == pytest.approx(8e-4, rel=0.15)
    assert {d.rule for d in decisions} == {str(fitted._rule(None))}
    assert any(d.propensity < 1 for d in decisions)
    assert "0.0008 USD a call on average" in decisions[0].reason
    save_router(fitted, tmp_path)
    again = load_router(tmp_path).decide(texts)
    assert [d.model for d in again] == [d.model for d in decisions]


def test_a_budget_below_the_cheapest_model_is_refused() -> None:
    with pytest.raises(InputError, match="less than the cheapest"):
        fit_router("toy", toy_table(), rule="budget:0.00001")


def test_a_damaged_spend_curve_is_refused(tmp_path: Path) -> None:
    save_router(fit_router("toy", toy_table()), tmp_path)
    header = json.loads((tmp_path / HEADER).read_text())
    (tmp_path / HEADER).write_text(json.dumps({**header, "spend_curve": [[1, 2]]}))
    with pytest.raises(InputError, match="spend curve"):
        load_router(tmp_path)
