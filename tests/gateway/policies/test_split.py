from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from scipy.stats import chisquare

from crossroads.gateway.contracts import ApiError, Choice
from crossroads.gateway.policies.eligibility import IneligibleError
from tests.gateway.policies.conftest import LEARNED, call, choose, choose_one, compiled, pool, run

SPLIT: dict[str, Any] = {"kind": "split", "weights": {"small": 1, "medium": 3}}


def user(name: str, **more: Any) -> Any:
    return call("ab", user=name, **more)


def test_calls_are_divided_by_weight_as_recorded() -> None:
    policies = compiled({"ab": {**SPLIT, "by": "request"}})
    found = choose(policies, *(call("ab", number=n) for n in range(4000)))
    counts = Counter(choice.model for choice in found)
    assert chisquare([counts["small"], counts["medium"]], [1000, 3000]).pvalue > 0.001
    for choice in found:
        assert choice.probabilities == {"small": 0.25, "medium": 0.75}
        assert choice.propensity == choice.probabilities[choice.model]


def test_a_session_keeps_its_side_in_every_process() -> None:
    one, other = compiled({"ab": SPLIT}), compiled({"ab": SPLIT})
    sessions = [user(f"session {n}") for n in range(50)]
    first = [choice.model for choice in choose(one, *sessions)]
    assert [choice.model for choice in choose(other, *sessions)] == first
    assert set(first) == {"small", "medium"}
    reseeded = compiled({"ab": {**SPLIT, "seed": 1}})
    assert [choice.model for choice in choose(reseeded, *sessions)] != first


def test_eligible_targets_share_the_whole() -> None:
    weights = {"small": 1, "medium": 3, "large": 4}
    policies = compiled({"ab": {**SPLIT, "weights": weights}}, models=pool(large={"tools": False}))
    found = choose(policies, *(call("ab", tools=[{}], number=n) for n in range(100)))
    assert {choice.model for choice in found} == {"small", "medium"}
    assert found[0].probabilities == {"small": 0.25, "medium": 0.75}
    only = compiled({"ab": {**SPLIT, "weights": {"large": 1}}}, models=pool(large={"tools": False}))
    with pytest.raises(IneligibleError, match="tools rules out large"):
        choose(only, call("ab", tools=[{}]))


def test_a_weight_of_zero_is_never_drawn() -> None:
    policies = compiled({"ab": {**SPLIT, "weights": {"small": 0, "medium": 1}}})
    assert {c.model for c in choose(policies, *(call("ab") for _ in range(50)))} == {"medium"}


def test_propensities_are_those_of_the_model_over_all_targets() -> None:
    """Both policies choose the large model for a hard prompt: it is certain, whoever is drawn."""
    policies = compiled(
        {
            "auto": LEARNED,
            "cheap": {**LEARNED, "objective": {"max_quality_under_usd": 0.01}},
            "some": {"kind": "canary", "base": "auto", "candidate": "cheap", "share": 0.2},
            "same": {"kind": "canary", "base": "auto", "candidate": "large", "share": 0.2},
        }
    )
    certain = choose_one(policies, call("same", "hard"))
    assert certain.propensity == pytest.approx(1)
    found = choose(policies, *(call("some", "hard", number=n) for n in range(2000)))
    counts = Counter(choice.model for choice in found)
    assert chisquare([counts["large"], counts["medium"]], [1600, 400]).pvalue > 0.001
    for choice in found:
        assert choice.probabilities == pytest.approx({"large": 0.8, "medium": 0.2})
        assert choice.propensity == pytest.approx(0.8 if choice.model == "large" else 0.2)
        side = "base" if choice.model == "large" else "candidate"
        assert choice.labels["canary"] == side
        assert choice.labels["via"] == ("auto" if side == "base" else "cheap")


def test_a_canary_keeps_sessions_and_its_share() -> None:
    policies = compiled(
        {"ab": {"kind": "canary", "base": "small", "candidate": "large", "share": 0.1}}
    )
    found = choose(policies, *(user(f"s{n}") for n in range(3000)))
    counts = Counter(choice.model for choice in found)
    assert chisquare([counts["small"], counts["large"]], [2700, 300]).pvalue > 0.001
    again = choose(policies, *(user(f"s{n}") for n in range(100)))
    assert [choice.model for choice in again] == [choice.model for choice in found[:100]]
    assert {c.labels["canary"] for c in found} == {"base", "candidate"}


def test_nested_chance_multiplies_out() -> None:
    policies = compiled(
        {
            "inner": {"kind": "split", "weights": {"small": 1, "medium": 1}},
            "ab": {"kind": "split", "weights": {"inner": 1, "small": 3}},
        }
    )
    found = choose(policies, *(call("ab", number=n) for n in range(2000)))
    assert found[0].probabilities == pytest.approx({"small": 0.875, "medium": 0.125})
    counts = Counter(choice.model for choice in found)
    assert chisquare([counts["small"], counts["medium"]], [1750, 250]).pvalue > 0.001


def test_a_shadow_notes_its_choice_and_changes_nothing() -> None:
    policies = compiled(
        {
            "auto": LEARNED,
            "cheap": {**LEARNED, "objective": {"max_quality_under_usd": 0.01}},
            "both": {"kind": "shadow", "base": "auto", "candidate": "cheap"},
        }
    )

    async def work() -> tuple[Choice, Choice]:
        alone = await policies.choose(call("auto", "hard"))
        watched = await policies.choose(call("both", "hard"))
        assert "shadow" not in watched.labels  # off the request's path
        await asyncio.sleep(0.01)
        return alone, watched

    alone, watched = run(work)
    assert watched.model == alone.model == "large"
    assert watched.propensity == 1.0
    assert watched.labels["shadow"] == "medium"
    assert watched.labels["shadow-policy"] == "cheap"
    told = policies.health()["policies"]["both"]
    assert told["pairs"] == [{"base": "large", "candidate": "medium", "calls": 1}]
    assert (told["shadowed"], told["agreed"]) == (1, 0)


def test_a_shadow_that_fails_is_noted_and_harmless() -> None:
    policies = compiled(
        {"auto": LEARNED, "both": {"kind": "shadow", "base": "small", "candidate": "auto"}}
    )

    async def work() -> Choice:
        found = await policies.choose(call("both", "broken"))
        await asyncio.sleep(0.01)
        return found

    found = run(work)
    assert (found.model, found.labels["shadow"]) == ("small", "failed")
    assert policies.health()["policies"]["both"]["failed"] == 1


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]


def test_a_side_that_cannot_answer_leaves_its_share_to_the_others() -> None:
    """A picture without text is nothing a router decides by."""
    weights = {"small": 1, "medium": 3, "learn": 4}
    policies = compiled({"ab": {"kind": "split", "weights": weights}, "learn": LEARNED})
    calls = [call("ab", messages=IMAGE, number=n) for n in range(400)]
    found = choose(policies, *calls)
    for choice in found:
        assert choice.probabilities == {"small": 0.25, "medium": 0.75}
        assert choice.propensity == choice.probabilities[choice.model]
    counts = Counter(choice.model for choice in found)
    assert chisquare([counts["small"], counts["medium"]], [100, 300]).pvalue > 0.001


def test_where_no_side_can_answer_the_last_refusal_is_told() -> None:
    policies = compiled({"ab": {"kind": "split", "weights": {"learn": 1}}, "learn": LEARNED})
    with pytest.raises(ApiError, match="No message holds text"):
        choose(policies, call("ab", messages=IMAGE))


def test_the_estimates_of_a_learned_side_are_noted_whoever_is_drawn() -> None:
    policies = compiled(
        {
            "auto": LEARNED,
            "ab": {"kind": "canary", "base": "auto", "candidate": "small", "share": 0.5},
        }
    )
    alone = choose_one(policies, call("auto", "hard"))
    assert alone.decision is not None
    found = choose(policies, *(call("ab", "hard", number=n) for n in range(40)))
    assert {choice.model for choice in found} == {"small", "large"}
    for choice in found:
        assert choice.decision is not None
        assert choice.decision.scores == alone.decision.scores
        assert choice.decision.model == choice.model
        assert choice.decision.predicted_cost_usd == alone.costs[choice.model]
        assert choice.costs == alone.costs


@pytest.mark.parametrize(
    "policy",
    [
        {"kind": "canary", "base": "auto", "candidate": "small", "share": 0.1},
        {"kind": "sticky", "policy": "auto"},
        {"kind": "shadow", "base": "auto", "candidate": "small"},
        {
            "kind": "rules",
            "rules": [{"when": {"tools": True}, "use": "small"}],
            "otherwise": "auto",
        },
        {"kind": "cascade", "steps": ["auto", "other"], "check": {"kind": "rules", "min_chars": 1}},
    ],
    ids=lambda policy: policy["kind"],
)
def test_what_models_cost_is_passed_on_by_policies_that_refer_to_another(policy: Any) -> None:
    policies = compiled({"auto": LEARNED, "p": policy})
    alone = choose_one(policies, call("auto", "hard"))
    assert alone.costs
    assert choose_one(policies, call("p", "hard", user="u")).costs == alone.costs
