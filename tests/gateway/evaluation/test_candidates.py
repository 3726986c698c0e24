from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.gateway.evaluation import (
    FixedModel,
    LoggedScores,
    RouterCandidate,
    Split,
    Uniform,
    build_log,
    off_policy,
)
from crossroads.gateway.evaluation.candidates import choice_probability
from crossroads.prompts.decide import BudgetRule
from crossroads.prompts.fitted import fit_router, save_router
from crossroads.prompts.readers import read_outcomes
from tests.gateway.ledger.records import record


def log(**changes: Any) -> Any:
    return build_log([record("d1", **changes), record("d2", **changes)], None)


def test_plain_policies_have_the_probabilities_they_say() -> None:
    assert FixedModel("large").target(log()).probability.tolist() == [[1, 0]] * 2
    assert Uniform().target(log()).probability.tolist() == [[0.5, 0.5]] * 2
    split = Split({"small": 3, "large": 1}).target(log())
    assert split.probability.tolist() == [[0.25, 0.75]] * 2


def test_unknown_models_and_empty_splits_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'large'"):
        FixedModel("largr").target(log())
    with pytest.raises(UsageError, match="weights"):
        Split({"small": 0.0}).target(log())


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [("argmax", "large"), ("tradeoff:1000", "small"), ("max-cost:0.005", "small")],
)
def test_logged_estimates_decide_under_another_rule(rule: str, chosen: str) -> None:
    of = log()
    target = LoggedScores(rule).target(of)
    assert [of.models[k] for k in target.probability.argmax(axis=1)] == [chosen] * 2
    assert rule in target.name


def test_a_rule_that_weighs_unknown_costs_is_refused() -> None:
    with pytest.raises(InputError, match="weighs costs"):
        LoggedScores("tradeoff:1").target(log(costs={}))
    with pytest.raises(InputError, match="no estimates"):
        LoggedScores("argmax").target(log(scores={}))


def test_a_mixture_of_two_prices_has_both_choices_probabilities() -> None:
    quality, cost = np.array([[0.5, 0.9]]), np.array([[0.001, 0.01]])
    rule = BudgetRule(usd=0.005, low_price=0.0, high_price=100.0, share=0.3)
    np.testing.assert_allclose(choice_probability(rule, quality, cost), [[0.3, 0.7]])


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("router") / "knn"
    save_router(fit_router("knn", read_outcomes("local")), folder)
    return folder


def test_a_fitted_router_decides_by_kept_text(router: Path) -> None:
    candidate = RouterCandidate.load(router)
    texts = ["What is 12 % of 250?", "Convert 3 miles to kilometres."]
    names = candidate.router.models
    of = build_log([record(f"d{n}", prompt=t, chosen=names[0]) for n, t in enumerate(texts)], None)
    target = candidate.target(of)
    wanted = [d.model for d in candidate.router.decide(texts)]
    assert [target.models[k] for k in target.probability.argmax(axis=1)] == wanted
    assert target.models[: len(of.models)] == of.models
    assert target.quality is not None


def test_a_fitted_router_decides_by_kept_embeddings(router: Path) -> None:
    candidate = RouterCandidate.load(router, "argmax")
    texts = ["What is 12 % of 250?", "Convert 3 miles to kilometres."]
    vectors = candidate.router._encoder.encode(texts)
    of = replace(
        log(chosen=candidate.router.models[0]),
        features=vectors.astype(np.float16).astype(np.float32),
    )
    by_vector = candidate.target(of).probability
    by_text = candidate.target(replace(of, texts=np.array(texts, dtype=object))).probability
    np.testing.assert_array_equal(by_vector, by_text)


def test_a_router_needs_text_or_embeddings(router: Path) -> None:
    candidate = RouterCandidate.load(router)
    of = log(chosen=candidate.router.models[0])
    with pytest.raises(InputError, match=r"2 of 2 judged calls .* without their text.*--since"):
        candidate.target(of)
    with pytest.raises(InputError, match="1 of 2 judged calls"):
        candidate.target(replace(of, texts=np.array(["Hello", None], dtype=object)))


def test_a_router_of_other_models_is_refused_by_name(router: Path) -> None:
    of = build_log([record("d1", prompt="What is 12 % of 250?")], None)
    told = r"none of the models of router knn \(.*\) is in the ledger, which knows large, small"
    with pytest.raises(InputError, match=told):
        RouterCandidate.load(router).target(of)


def partly_open(router: Path) -> tuple[Any, RouterCandidate]:
    """A call that two of three models might answer, and one that all might; the router's models."""
    candidate = RouterCandidate.load(router)
    first, second, third = candidate.router.models
    text = "What is 12 % of 250?"
    best = candidate.router.decide([text])[0].model
    others = [model for model in (first, second, third) if model != best]
    some = {"eligible": "2 of 3"}
    rows = [
        record("d1", prompt=text, chosen=others[0], scores=dict.fromkeys(others, 0.5), labels=some),
        record("d2", prompt=text, chosen=best, scores=dict.fromkeys((*others, best), 0.5)),
    ]
    return build_log(rows, None), candidate


def test_candidates_are_held_to_the_models_that_might_answer(router: Path) -> None:
    of, candidate = partly_open(router)
    assert of.eligible is not None
    best = of.models[int(of.action[1])]
    open_0 = {of.models[k] for k in np.flatnonzero(of.eligible[0])}
    assert best not in open_0
    chosen = candidate.target(of)
    assert [chosen.models[k] for k in chosen.probability.argmax(axis=1)][1] == best
    assert chosen.models[int(chosen.probability[0].argmax())] in open_0
    split = Split(dict.fromkeys(candidate.router.models, 1.0)).target(of).probability
    assert split[0, of.models.index(best)] == 0
    np.testing.assert_allclose(split.sum(axis=1), 1.0)
    fixed = FixedModel(best).target(of).probability  # it has no other model to go to
    assert fixed[0, of.models.index(best)] == 1


def test_calls_without_logged_estimates_are_left_out_and_counted() -> None:
    of = build_log([record("d1"), record("d2", scores={}), record("d3")], None)
    found = off_policy(of, LoggedScores("argmax"), draws=0)
    assert found.num_calls == 2
    assert found.dropped == {"without logged estimates": 1}
