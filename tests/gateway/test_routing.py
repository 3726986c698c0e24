from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.errors import ApiError
from crossroads.gateway.routing import Route, Routing
from tests.gateway.serving import FakeRouter

MESSAGES = [{"role": "user", "content": "what is 1 + 1?"}]


def route(routing: Routing, model: str, messages: Any = MESSAGES) -> Route:
    try:
        return asyncio.run(routing.route(model, messages))
    finally:
        routing.close()


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
