from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.errors import ApiError
from crossroads.gateway.routing import Route, Routing
from crossroads.prompts.preferences.backend import RouteChoice
from crossroads.prompts.preferences.conversation import Turn
from crossroads.prompts.preferences.policies import OTHER, Policy, Preferences
from crossroads.prompts.preferences.router import PreferenceRouter
from tests.gateway.serving import FakeRouter

MESSAGES = [{"role": "user", "content": "what is 1 + 1?"}]


def route(routing: Routing, model: str, messages: Any = MESSAGES) -> Route:
    try:
        return asyncio.run(routing.route(model, messages))
    finally:
        routing.close()


class AlwaysFits:
    """A back end that chooses one route, certain of it."""

    name, version = "always-fits", "1"

    def __init__(self, route: str) -> None:
        self._route = route

    def choose(self, policies: Sequence[Policy], turns: Sequence[Turn]) -> RouteChoice:
        names = [*(policy.name for policy in policies), OTHER]
        return RouteChoice(
            route=self._route, scores={name: float(name == self._route) for name in names}
        )


def by_policy(fits: str = "sums") -> PreferenceRouter:
    policies = [
        {"name": "sums", "description": "arithmetic", "model": "a"},
        {"name": "law", "description": "contracts", "model": "b"},
    ]
    return PreferenceRouter(Preferences.parse(policies, default="b"), AlwaysFits(fits))


def headers(found: Route) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in found.headers()}


def test_a_named_model_goes_past_the_router() -> None:
    router = FakeRouter("a", "b")
    found = route(Routing(["a", "b"], router), "b")
    assert found == Route("b")
    assert router.asked == []
    assert headers(found) == {
        "x-crossroads-model": "b",
        "x-crossroads-policy": "direct",
        "x-crossroads-reason": "the request names the model",
    }


def test_auto_asks_the_router_under_the_servers_rule() -> None:
    router = FakeRouter("a", "b")
    found = route(Routing(["a", "b"], router, rule="max-cost:0.01"), "auto")
    assert found.model == "a"
    assert router.asked == [("what is 1 + 1?", "max-cost:0.01")]


def test_a_rule_in_the_request_goes_before_the_servers() -> None:
    router = FakeRouter("a", "b")
    route(Routing(["a", "b"], router, rule="argmax"), "auto:min-quality:0.5")
    assert router.asked == [("what is 1 + 1?", "min-quality:0.5")]


def test_a_model_called_auto_something_is_served_by_its_name() -> None:
    assert route(Routing(["auto:x"], FakeRouter("a", "b")), "auto:x") == Route("auto:x")


@pytest.mark.parametrize("content", ["", "  ", 5, None, []])
def test_there_is_nothing_to_route_by_without_text(content: Any) -> None:
    router = FakeRouter("a", "b")
    with pytest.raises(ApiError, match="No message holds text"):
        route(Routing(["a"], router), "auto", [{"role": "user", "content": content}])
    assert router.asked == []
    assert route(Routing(["a"], router), "a", [{"role": "user"}]) == Route("a")


@pytest.mark.parametrize("model", ["", "AUTO", "autos", "a:argmax"])
def test_other_names_are_not_found(model: str) -> None:
    with pytest.raises(ApiError) as refused:
        route(Routing(["a"], FakeRouter("a", "a")), model)
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")


def test_a_rule_needs_a_fitted_router_where_preferences_serve_plain_auto() -> None:
    with pytest.raises(ApiError) as refused:
        route(Routing(["a", "b"], preferences=by_policy()), "auto:tradeoff:5")
    assert refused.value.status == 404
    told = refused.value.body.decode()
    assert "rule 'tradeoff:5' needs a fitted router" in told
    assert "plain 'auto', which the preferences serve" in told
    assert "cannot be served" not in told
    with pytest.raises(ApiError, match="No router is loaded, so 'auto' cannot be served"):
        route(Routing(["a", "b"]), "auto:tradeoff:5")


def test_the_matched_policy_is_named_with_its_confidence() -> None:
    found = headers(route(Routing(["a", "b"], preferences=by_policy()), "auto"))
    assert found["x-crossroads-model"] == "a"
    assert found["x-crossroads-policy"] == "preferences sums"
    assert found["x-crossroads-confidence"] == "1.0000"


def test_the_default_of_the_policies_claims_no_confidence() -> None:
    decided = route(Routing(["a", "b"], preferences=by_policy(fits=OTHER)), "auto")
    found = headers(decided)
    assert found["x-crossroads-model"] == "b"
    assert found["x-crossroads-policy"] == "preferences default"
    assert "x-crossroads-confidence" not in found
    assert decided.decision is not None
    assert decided.decision.confidence == 0


def test_an_unknown_cost_is_left_out() -> None:
    decision = replace(FakeRouter("a", "b").route("x"), predicted_cost_usd=None)
    assert "x-crossroads-predicted-cost-usd" not in headers(Route("b", decision))


@given(st.text(), st.floats(0, 1000))
def test_headers_are_printable_ascii_on_one_line(reason: str, cost: float) -> None:
    decision = replace(FakeRouter("a", "b").route("x"), reason=reason, predicted_cost_usd=cost)
    for _, value in Route("b", decision).headers():
        assert all(0x20 <= byte <= 0x7E for byte in value)
        assert len(value) <= 300
    written = float(headers(Route("b", decision))["x-crossroads-predicted-cost-usd"])
    assert written == pytest.approx(cost, abs=1e-12)
