from __future__ import annotations

from typing import Any

import pytest

from crossroads.gateway.errors import ApiError
from crossroads.gateway.policies.eligibility import IneligibleError
from tests.gateway.policies.conftest import LEARNED, call, choose, choose_one, compiled, pool

CODE = "Why does my Python function raise an index error in this loop?"
TRIP = "Which hotels near the airport in Lisbon should I book for my trip?"
SECTION: dict[str, Any] = {
    "auto": {
        "kind": "preferences",
        "otherwise": "other",
        "policies": [
            {"name": "code", "description": "programming, errors in code", "model": "small"},
            {"name": "travel", "description": "flights, hotels, trips", "model": "medium"},
        ],
    }
}


def test_the_model_of_the_fitting_description_answers() -> None:
    code, trip, thanks = choose(
        compiled(SECTION), call(text=CODE), call(text=TRIP), call(text="Thanks!")
    )
    assert (code.model, code.labels["route"]) == ("small", "code")
    assert code.reason == "policy 'code' fits the latest request (matcher): small serves it"
    assert trip.model == "medium"
    assert (thanks.model, thanks.labels["route"]) == ("other", "other")
    assert code.decision is not None
    assert code.decision.router == "preferences"
    assert code.decision.scores == {}  # descriptions are no models: nothing is known of these


def test_long_requests_are_read_in_a_thread_with_the_same_answer() -> None:
    policies = compiled(SECTION)
    assert choose_one(policies, call(text=CODE, size=10**6)).model == "small"
    policies.close()


def test_a_request_may_bring_its_own() -> None:
    own = [
        {"name": "bugs", "description": "programming, errors in code", "model": "large"},
        {"name": "trips", "description": "hotels and flights", "model": "small"},
    ]
    policies = compiled(SECTION)
    assert choose_one(policies, call(text=CODE, routing_preferences=own)).model == "large"
    assert choose_one(policies, call(text=CODE)).model == "small"


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ([], "expected a list of policies"),
        ([{"name": "a", "description": "b", "model": "gpt"}], "model 'gpt' does not exist"),
        ([{"name": "a", "description": "b", "model": "large"}], "at least 2 models, got 1"),
    ],
)
def test_malformed_preferences_of_a_request_are_400(own: Any, told: str) -> None:
    with pytest.raises(ApiError, match=told) as refused:
        choose(compiled(SECTION), call(text=CODE, routing_preferences=own))
    assert (refused.value.status, refused.value.param) == (400, "routing_preferences")


OWN = [
    {"name": "bugs", "description": "programming, errors in code", "model": "large"},
    {"name": "trips", "description": "hotels and flights", "model": "small"},
]


def test_a_policy_within_another_takes_them_too() -> None:
    outer = {
        "desk": {
            "kind": "rules",
            "rules": [{"when": {"tools": True}, "use": "large"}],
            "otherwise": "calm",
        },
        "calm": {"kind": "sticky", "policy": "auto"},
        "again": {"kind": "sticky", "policy": "desk"},
    }
    policies = compiled({**SECTION, **outer})
    for name in ("desk", "calm", "again"):
        found = choose_one(policies, call(name, text=CODE, routing_preferences=OWN))
        assert found.model == "large", name


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, "the policy 'auto' does not take them; only one of kind 'preferences' does"),
        ({"kinds": SECTION["auto"]}, "the policy 'auto' does not take them; ask for kinds"),
    ],
)
def test_a_policy_that_does_not_take_them_says_so(more: Any, told: str) -> None:
    policies = compiled({"auto": LEARNED, **more})
    with pytest.raises(ApiError, match=told) as refused:
        choose(policies, call(text=CODE, routing_preferences=OWN))
    assert (refused.value.status, refused.value.param) == (400, "routing_preferences")
    assert choose_one(policies, call("small", routing_preferences=OWN)).policy == "direct"


def test_a_model_that_may_not_answer_gives_way_to_the_default() -> None:
    no_tools = {"tools": False}
    tools = call(text=CODE, tools=[{}])
    found = choose_one(compiled(SECTION, models=pool(small=no_tools)), tools)
    assert found.model == "other"
    assert "it may not answer this request, other may" in found.reason
    none = pool(small=no_tools, medium=no_tools, other=no_tools)
    with pytest.raises(IneligibleError, match="tools rules out"):
        choose(compiled(SECTION, models=none), tools)
