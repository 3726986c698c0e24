from __future__ import annotations

from typing import Any

import pytest

from crossroads.core.http.timeouts import Timeouts
from crossroads.gateway.call import Call, Client
from crossroads.gateway.errors import ApiError
from crossroads.gateway.policies.eligibility import Eligibility, IneligibleError
from crossroads.gateway.upstreams import build_upstreams
from crossroads.prompts.pool import ModelCard, Pool
from tests.gateway.policies.conftest import LEARNED, call, choose, choose_one, compiled, pool

IMAGE = [{"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "easy"}]}]


def one_of_each(given: Call, cards: dict[str, Any]) -> frozenset[str]:
    return Eligibility(pool(**cards)).allowed(given)


@pytest.mark.parametrize(
    ("cards", "given"),
    [
        ({"small": {"context": 100}}, call(size=1000)),
        ({"small": {"context": 100}}, call(max_tokens=90)),
        ({"small": {"max_output": 10}}, call(max_tokens=11)),
        ({"small": {"inputs": ["text"]}}, call(messages=IMAGE)),
        ({"small": {"tools": False}}, call(tools=[{"type": "function"}])),
        ({"small": {"speaks": ["embeddings"]}}, call()),
    ],
)
def test_a_card_that_rules_a_request_out_is_kept_from_it(
    cards: dict[str, Any], given: Call
) -> None:
    assert one_of_each(given, cards) == {"medium", "large", "other"}


@pytest.mark.parametrize(
    "given", [call(size=10**9), call(messages=IMAGE), call(tools=[{}]), call(max_tokens=10**9)]
)
def test_what_a_card_does_not_say_rules_nothing_out(given: Call) -> None:
    assert one_of_each(given, {}) == {"small", "medium", "large", "other"}


def test_residency_must_be_promised() -> None:
    cards = {"small": {"residency": ["eu"]}, "medium": {"residency": ["eu", "us"]}}
    eu = Client(key_id="k", residency=frozenset(("eu",)))
    assert one_of_each(call(client=eu), cards) == {"small"}
    asked = call(headers={"x-crossroads-residency": "eu, us"})
    assert one_of_each(asked, cards) == {"small", "medium"}
    # a request may narrow what its key allows, never widen it
    both = call(client=eu, headers={"x-crossroads-residency": "eu,us"})
    assert one_of_each(both, cards) == {"small"}
    none = call(client=eu, headers={"x-crossroads-residency": "us"})
    assert one_of_each(none, cards) == frozenset()


def test_a_keys_models_bind_and_a_list_of_policies_alone_does_not() -> None:
    listed = Client(key_id="k", models=frozenset(("auto", "small")))
    assert one_of_each(call(client=listed), {}) == {"small"}
    policies = Client(key_id="k", models=frozenset(("auto",)))
    assert len(one_of_each(call(client=policies), {})) == 4


def test_a_model_named_by_a_request_is_tried_only_where_the_keys_models_allow_it() -> None:
    eligibility = Eligibility(pool(small={"context": 10}))
    listed = call(size=10_000, client=Client(key_id="k", models=frozenset(("auto", "small"))))
    assert eligibility.named(listed, "small")  # the length is the model's own affair
    assert not eligibility.named(listed, "large")


def test_embeddings_go_only_where_they_are_spoken() -> None:
    cards = {"small": {"speaks": ["embeddings"]}, "medium": {"speaks": ["chat"]}}
    assert one_of_each(call(dialect="embeddings", input="x"), cards) == {"small"}
    known = Eligibility(pool(), {"large": frozenset(("chat", "embeddings"))})
    assert known.allowed(call(dialect="embeddings", input="x")) == {"large"}


def test_a_dialect_is_reached_by_translation_or_natively() -> None:
    cards = {"small": {"speaks": ["messages"]}, "medium": {"speaks": ["completions"]}}
    assert "small" in one_of_each(call(dialect="messages"), cards)
    assert "small" not in one_of_each(call(dialect="responses"), cards)
    assert "large" in one_of_each(call(dialect="responses"), cards)


@pytest.mark.parametrize(
    ("field", "given", "code", "told"),
    [
        ({"context": 10}, call(size=4000), "context_length_exceeded", "context length rules out"),
        ({"inputs": ["text"]}, call(messages=IMAGE), "unsupported_input", "hold image, text"),
        ({"tools": False}, call(tools=[{}]), "unsupported_tools", "none of them calls tools"),
        ({}, call(headers={"x-crossroads-residency": "eu"}), "residency", "keep data in eu"),
        ({"speaks": ["embeddings"]}, call(), "unsupported_api", "none of them speaks chat"),
        (
            {},
            call(client=Client(key_id="k7", models=frozenset(("auto", "other")))),
            "model_not_allowed",
            "the key 'k7' may not use them",
        ),
    ],
)
def test_the_constraint_that_left_no_model_is_named(
    field: dict[str, Any], given: Call, code: str, told: str
) -> None:
    cards = dict.fromkeys(("small", "medium", "large"), field)
    policies = compiled({"auto": LEARNED}, models=pool(**cards))
    with pytest.raises(IneligibleError, match=told) as refused:
        choose(policies, given)
    assert (refused.value.status, refused.value.code) == (400, code)
    assert "'auto'" in str(refused.value)


def test_the_learned_router_masks_what_may_not_answer() -> None:
    policies = compiled({"auto": LEARNED}, models=pool(large={"tools": False}))
    assert choose_one(policies, call(text="hard")).model == "large"
    masked = choose_one(policies, call(text="hard", tools=[{}]))
    assert masked.model == "medium"
    assert masked.labels["eligible"] == "2 of 3"
    assert masked.decision is not None
    assert set(masked.decision.scores) == {"small", "medium"}


def test_a_model_the_router_rules_out_is_masked_however_cheap() -> None:
    policies = compiled({"auto": {**LEARNED, "models": ["large"]}})
    with pytest.raises(IneligibleError, match="the router rules out large"):
        choose(policies, call(text="no-large hard"))
    priced = compiled({"auto": {**LEARNED, "objective": {"tradeoff": 0}}})
    assert choose_one(priced, call(text="no-large hard")).model == "medium"


def test_fallbacks_are_filtered_too() -> None:
    policies = compiled(
        {"auto": {**LEARNED, "fallbacks": ["other", "small", "large"]}},
        fallbacks={"small": ["medium", "other"]},
        models=pool(other={"tools": False}),
    )
    tools = call(text="hard", tools=[{}])
    assert choose_one(policies, call(text="hard")).fallbacks == ("other", "small")
    assert choose_one(policies, tools).fallbacks == ("small",)
    assert choose_one(policies, call("small")).fallbacks == ("medium", "other")
    assert choose_one(policies, call("small", tools=[{}])).fallbacks == ("medium",)


def test_a_named_model_is_tried_whatever_our_estimate_of_its_length() -> None:
    policies = compiled({}, models=pool(small={"context": 10, "tools": False}))
    assert choose_one(policies, call("small", size=10**6)).model == "small"
    with pytest.raises(ApiError, match="tools rules out small"):
        choose(policies, call("small", tools=[{}]))


def test_cards_alone_allow_what_their_upstreams_would() -> None:
    url = "http://127.0.0.1:9/v1"
    fields: list[dict[str, Any]] = [
        {"endpoint": url},
        {"endpoint": url, "api": "anthropic"},
        {"endpoint": url, "speaks": ["responses", "chat"]},
        {"endpoint": url, "api": "anthropic", "speaks": ["messages"]},
        {"endpoint": "local:units", "speaks": ["completions"]},
        {"api": "litellm", "speaks": ["completions"]},
    ]
    cards = [ModelCard(name=f"m{number}", **each) for number, each in enumerate(fields)]
    upstreams = build_upstreams(cards, timeouts=Timeouts())
    speaks = {name: upstream.speaks for name, upstream in upstreams.items()}
    served = Pool(name="all", models=tuple(cards))
    assert Eligibility(served).facts == Eligibility(served, speaks).facts
