from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from crossroads.core.errors import InputError
from crossroads.gateway.contracts import Choice
from crossroads.gateway.errors import ApiError
from crossroads.gateway.policies import CompiledPolicies
from crossroads.prompts.budget import SpendCurve
from crossroads.prompts.fitted import FittedRouter
from tests.gateway.policies.conftest import (
    LEARNED,
    MODELS,
    Stub,
    call,
    choose,
    choose_one,
    compiled,
    pool,
    run,
    stub,
)

PROMPTS = [f"prompt number {n}" for n in range(64)]


def learned(**fields: Any) -> CompiledPolicies:
    return compiled({"auto": {**LEARNED, **fields}})


@pytest.mark.parametrize(
    ("objective", "text", "model"),
    [
        ({"max_quality_under_usd": 0.01}, "hard", "medium"),
        ({"max_quality_under_usd": 0.5}, "hard", "large"),
        ({"min_cost_above_quality": 0.5}, "hard", "medium"),
        ({"min_cost_above_quality": 0.5}, "easy", "small"),
        ({"tradeoff": 1.0}, "hard", "large"),
        ({"tradeoff": 5.0}, "hard", "medium"),
        ({"rule": "argmax"}, "easy", "large"),
    ],
)
def test_each_objective_chooses_what_it_says(
    objective: dict[str, Any], text: str, model: str
) -> None:
    assert choose_one(learned(objective=objective), call(text=text)).model == model


def test_the_choice_carries_what_a_ledger_needs() -> None:
    found = choose_one(learned(), call(text="hard"))
    assert (found.policy, found.propensity, found.is_explored) == ("auto", 1.0, False)
    assert len(found.version) == 16
    decision = found.decision
    assert decision is not None
    assert decision.scores == {"small": 0.3, "medium": 0.6, "large": 0.9}
    assert decision.predicted_quality == 0.9
    assert decision.predicted_cost_usd == 0.1
    assert decision.confidence == pytest.approx(0.3)
    assert decision.rule == "argmax"
    assert "highest estimated quality" in found.reason
    assert found.fallbacks == ("medium", "small")  # the next best
    assert found.features is None


def test_decisions_are_those_of_the_fitted_router_itself() -> None:
    fitted = stub()
    for rule in ("argmax", "tradeoff:3", "max-cost:0.02", "min-quality:0.6"):
        policies = compiled({"auto": {**LEARNED, "objective": {"rule": rule}}}, router=fitted)
        found = choose(policies, *(call(text=text) for text in PROMPTS))
        for choice, expected in zip(found, fitted.decide(PROMPTS, rule=rule), strict=True):
            assert choice.decision is not None
            assert choice.model == expected.model
            assert choice.reason.split(",")[0] == expected.reason.split(",")[0]
            assert choice.decision.confidence == pytest.approx(expected.confidence, abs=1e-6)


def test_what_a_router_rules_out_for_one_prompt_is_open_to_the_next() -> None:
    masked, free = choose(learned(), call(text="no-large hard"), call(text="hard"))
    assert (masked.model, free.model) == ("medium", "large")
    assert masked.decision is not None and free.decision is not None
    assert set(masked.decision.scores) == {"small", "medium"}
    assert set(free.decision.scores) == set(MODELS)
    again = choose(learned(), call(text="hard"), call(text="no-large hard"))
    assert again[1].decision is not None
    assert set(again[1].decision.scores) == {"small", "medium"}


def test_a_price_on_cost_adds_to_the_policys_own() -> None:
    policies = learned(objective={"tradeoff": 1.0})
    assert choose_one(policies, call(text="hard")).model == "large"
    assert choose_one(policies, call(text="hard"), price=4.0).model == "medium"
    assert choose_one(policies, call(text="hard"), price=1000.0).model == "small"


def test_a_price_on_cost_stays_within_what_the_policy_can_afford() -> None:
    capped = learned(objective={"max_quality_under_usd": 0.01})
    found = choose_one(capped, call(text="hard"), price=1.23456)
    assert (found.model, found.labels["cost-price"]) == ("medium", "1.23")
    assert found.decision is not None
    assert found.decision.rule == "max-cost:0.01"
    assert choose_one(capped, call(text="hard"), price=1000.0).model == "small"
    floor = learned(objective={"min_cost_above_quality": 0.5})
    assert choose_one(floor, call(text="hard"), price=1000.0).model == "medium"


def test_a_price_means_nothing_where_costs_are_unknown() -> None:
    policies = compiled({"auto": LEARNED}, router=stub((float("nan"),) * 3))
    found = choose_one(policies, call(text="hard"), price=1000.0)
    assert found.model == "large"
    assert found.decision is not None
    assert found.decision.predicted_cost_usd is None


def test_a_calibrated_budget_draws_by_the_call_and_records_both_sides() -> None:
    spend = SpendCurve(price=np.array([0.0, 4.0, 1000.0]), usd=np.array([0.05, 0.02, 0.001]))
    fitted = replace(stub(), spend=spend)
    policies = compiled({"auto": {**LEARNED, "objective": {"budget_usd": 0.035}}}, router=fitted)
    found = choose(policies, *(call(text=text, number=n) for n, text in enumerate(PROMPTS)))
    for choice, expected in zip(found, fitted.decide(PROMPTS, rule="budget:0.035"), strict=True):
        if choice.model == expected.model:
            assert choice.propensity == pytest.approx(expected.propensity)
        else:
            assert choice.propensity == pytest.approx(1 - expected.propensity)
    drawn = [choice for choice in found if choice.probabilities]
    assert drawn
    for choice in drawn:
        assert sum(choice.probabilities.values()) == pytest.approx(1)
        assert choice.probabilities[choice.model] == choice.propensity


def test_one_prompt_asked_again_and_again_gets_both_sides_of_a_budget_as_often_as_recorded() -> (
    None
):
    policies = learned(objective={"rule": "budget:0.01:0:10:0.6"})
    calls = [call(text="hard", number=n) for n in range(2000)]
    found = choose(policies, *calls)
    counts = Counter(choice.model for choice in found)
    assert found[0].probabilities == pytest.approx({"small": 0, "medium": 0.6, "large": 0.4})
    assert binomtest(counts["medium"], len(calls), 0.6).pvalue > 0.001
    assert counts["medium"] + counts["large"] == len(calls)
    assert not any(choice.is_explored for choice in found)
    assert [choice.model for choice in choose(policies, *calls)] == [c.model for c in found]


def test_a_decision_on_the_event_loop_that_took_too_long_is_counted_and_the_next_are_not() -> None:
    fitted = stub()
    router = fitted.router
    assert isinstance(router, Stub)
    policies = compiled(
        {"auto": {**LEARNED, "budget_us": 2000, "fallback": "other"}}, router=fitted
    )
    row = router._row

    def late(text: str) -> list[float]:
        time.sleep(0.05)
        return row(text)

    router._row = late  # type: ignore[method-assign]
    node: Any = policies._policies["auto"]
    node.estimates.is_inline, node.estimates._pace = True, 0.0  # however busy this machine is
    found = choose(policies, *(call(text=f"hard {n}") for n in range(6)))
    health = policies.health()["policies"]["auto"]
    assert health["late"] == 3  # then the thread has it, and the budget can be kept
    assert [choice.model for choice in found] == ["large"] * 3 + ["other"] * 3
    assert health["degraded"]["route-budget"] == 3
    assert policies.describe()["auto"]["runs"] == "in a thread"
    policies.close()


def test_over_budget_the_declared_fallback_answers_labelled() -> None:
    fitted = stub()
    router = fitted.router
    assert isinstance(router, Stub)
    fields = {"budget_us": 2000, "fallback": "other", "inline_chars": 0}
    policies = compiled({"auto": {**LEARNED, **fields}}, router=fitted)

    async def work() -> tuple[Choice, Choice]:
        late = await policies.choose(call(text="wait hard"))
        router.gate.set()
        while True:
            found = await policies.choose(call(text="wait hard"))
            if found.model != "other":
                return late, found

    late, found = run(work)
    assert (late.model, late.policy) == ("other", "auto")
    assert late.labels["degraded"] == "route-budget"
    assert "longer than its budget" in late.reason
    assert (found.model, "degraded" in found.labels) == ("large", False)
    assert policies.health()["policies"]["auto"]["degraded"]["route-budget"] >= 1
    policies.close()


def test_a_router_that_raises_is_loud_and_the_fallback_decides() -> None:
    policies = learned(fallback="other")
    found = choose_one(policies, call(text="broken"))
    assert (found.model, found.labels["degraded"]) == ("other", "router-failed")
    health = policies.health()
    assert health["state"] == "degraded"
    assert "singular" in health["policies"]["auto"]["problem"]
    assert health["policies"]["auto"]["degraded"]["router-failed"] == 1
    choose(policies, call(text="hard"))
    assert policies.health()["state"] == "ok"


def test_a_router_that_raises_without_a_fallback_is_an_error_never_chance() -> None:
    with pytest.raises(ApiError, match="The router of policy 'auto' failed") as refused:
        choose(learned(), call(text="broken"))
    assert (refused.value.status, refused.value.code) == (503, "router_failed")


def test_a_fallback_may_be_a_policy_and_constraints_bind_it() -> None:
    split = {"kind": "split", "weights": {"other": 1}}
    policies = compiled(
        {"auto": {**LEARNED, "fallback": "ab"}, "ab": split}, models=pool(other={"tools": False})
    )
    found = choose_one(policies, call(text="broken"))
    assert (found.model, found.labels["via"]) == ("other", "ab")
    masked = choose_one(policies, call(text="broken", tools=[{}]))
    assert (masked.model, masked.labels["degraded"]) == ("small", "router-failed")
    assert "cheapest that may" in masked.reason


def test_without_text_a_declared_fallback_answers() -> None:
    found = choose_one(learned(fallback="other"), call(text=""))
    assert (found.model, found.labels["degraded"]) == ("other", "no-text")


def test_the_same_input_has_the_same_decision_64_ways_however_it_is_batched() -> None:
    explore = {"epsilon": 0.3, "margin": 0.5}
    calls = [call(text=text, number=n) for n, text in enumerate(PROMPTS)]

    def decided(order: list[int], together: int, **fields: Any) -> list[tuple[str, float, bool]]:
        policies = learned(explore=explore, seed=3, **fields)

        async def work() -> dict[int, Choice]:
            found: dict[int, Choice] = {}
            for start in range(0, len(order), together):
                part = order[start : start + together]
                choices = await asyncio.gather(*(policies.choose(calls[n]) for n in part))
                found |= dict(zip(part, choices, strict=True))
            return found

        found = run(work)
        policies.close()
        return [
            (found[n].model, found[n].propensity, found[n].is_explored) for n in range(len(calls))
        ]

    inorder = list(range(64))
    shuffled = random.Random(5).sample(inorder, 64)
    alone = decided(inorder, 1)
    assert decided(inorder, 64) == alone
    assert decided(shuffled, 64) == alone
    assert decided(shuffled, 64, inline_chars=0, max_batch=5) == alone
    assert decided(shuffled, 7, cache=0) == alone
    assert any(explored for _, _, explored in alone)


def test_a_fitted_router_decides_alike_64_ways(knn: FittedRouter) -> None:
    policies = compiled({"auto": LEARNED}, router=knn, models=knn.pool)
    texts = [f"What is {n} plus {n * n}? Convert {n} miles to metres." for n in range(64)]

    async def together() -> list[Choice]:
        return list(await asyncio.gather(*(policies.choose(call(text=t)) for t in texts)))

    concurrent = [choice.model for choice in run(together)]
    again = compiled({"auto": {**LEARNED, "inline_chars": 0}}, router=knn, models=knn.pool)
    assert [choice.model for choice in choose(again, *(call(text=t) for t in texts))] == concurrent
    assert [decision.model for decision in knn.decide(texts)] == concurrent
    again.close()


def test_features_are_the_prompts_embedding_as_float16_where_asked_for(knn: FittedRouter) -> None:
    from crossroads.models.encoders import get_encoder

    policies = compiled({"auto": {**LEARNED, "keep_features": True}}, router=knn, models=knn.pool)
    found = choose_one(policies, call(text="how far is the moon?"))
    assert found.features is not None
    expected = get_encoder("static").encode(["how far is the moon?"])[0]
    assert np.frombuffer(found.features, "<f2") == pytest.approx(expected, abs=1e-3)


def test_a_subset_of_models_is_chosen_among() -> None:
    found = choose(learned(models=["small", "medium"]), *(call(text=text) for text in PROMPTS))
    assert {choice.model for choice in found} == {"small", "medium"}


def test_hedging_is_the_policys() -> None:
    assert choose_one(learned(hedge_after_ms=250), call()).hedge_after == 0.25


def test_verification_is_told_only_of_what_the_router_alone_would_choose(
    calibrated: FittedRouter,
) -> None:
    policies = compiled({"auto": LEARNED}, router=calibrated, models=calibrated.pool)
    text = "What is 12 times 31?"
    own = choose_one(policies, call(text=text))
    assert own.decision is not None
    expected = calibrated.route(text).details["verification"]
    assert own.decision.details["verification"]["answer"] == expected["answer"]
    priced = choose_one(policies, call(text=text), price=1.0)
    assert priced.decision is not None
    assert priced.decision.details["verification"]["answer"] is None


def test_verification_is_not_told_where_a_constraint_took_a_model_away(
    calibrated: FittedRouter,
) -> None:
    cards = [card.model_copy(update={"tools": card.name != "large"}) for card in calibrated.pool]
    models = calibrated.pool.model_copy(update={"models": tuple(cards)})
    policies = compiled({"auto": LEARNED}, router=calibrated, models=models)
    text = "Describe a red flower in the garden, poem 4"
    free, masked = choose(policies, call(text=text), call(text=text, tools=[{}]))
    assert free.decision is not None and masked.decision is not None
    assert free.model == masked.model == "small"
    assert free.decision.details["verification"]["answer"] is not None
    assert masked.decision.details["verification"]["answer"] is None


def test_previews_need_a_learned_policy_and_a_rule_it_can_use() -> None:
    policies = learned()
    choose(policies, *(call(text=text) for text in PROMPTS))
    best = policies.preview("auto", "argmax")
    thrifty = policies.preview("auto", 1e6)
    assert best["num_prompts"] == len(PROMPTS)
    assert best["quality"] > thrifty["quality"]
    assert best["usd"] > thrifty["usd"] == pytest.approx(0.001)
    assert set(best["shares"]) == set(MODELS)
    for name, rule, status in (("small", 1.0, 404), ("auto", "argmx", 400), ("auto", -1.0, 400)):
        with pytest.raises(ApiError) as refused:
            policies.preview(name, rule)
        assert refused.value.status == status


def test_unknown_artefacts_are_input_errors() -> None:
    with pytest.raises(InputError):
        compiled({"auto": {"kind": "learned", "router": "nowhere"}})
