from __future__ import annotations

from typing import Any

import pytest

from crossroads.gateway.call import Client
from crossroads.gateway.policies.eligibility import IneligibleError
from tests.gateway.policies.conftest import LEARNED, call, choose, choose_one, compiled, pool

IMAGE = [{"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "easy"}]}]
TAGS = {"x-crossroads-tags": "b, a"}
ENGLISH = "What is the weather in the city?"
GERMAN = "Wie ist das Wetter heute und was soll ich mit der Zeit machen?"


def rules(*rules: dict[str, Any], otherwise: str = "small") -> dict[str, Any]:
    return {"auto": {"kind": "rules", "rules": list(rules), "otherwise": otherwise}}


@pytest.mark.parametrize(
    ("when", "holds", "fails"),
    [
        ({"headers": {"X-Tier": "gold"}}, call(headers={"x-tier": "gold"}), call()),
        (
            {"tags": ["a", "b"]},
            call(headers={"x-crossroads-tags": "b, a"}),
            call(headers={"x-crossroads-tags": "a"}),
        ),
        ({"metadata": {"app": "x"}}, call(metadata={"app": "x"}), call(metadata={"app": "y"})),
        ({"session": True}, call(user="u"), call()),
        ({"keys": ["k"]}, call(client=Client(key_id="k")), call()),
        ({"teams": ["t"]}, call(client=Client(key_id="k", team="t")), call()),
        ({"dialects": ["messages"]}, call(dialect="messages"), call()),
        ({"min_tokens": 100}, call(size=400), call(size=395)),
        ({"max_tokens": 100}, call(size=399), call(size=400)),
        ({"tools": True}, call(tools=[{}]), call()),
        ({"tools": False}, call(), call(tools=[{}])),
        ({"inputs": ["image", "audio"]}, call(messages=IMAGE), call()),
        (
            {"languages": ["de", "fr"]},
            call(text=GERMAN),
            call(text="What is the weather in the city?"),
        ),
        ({"regex": r"(?i)\bsql\b"}, call(text="write SQL for me"), call(text="mysqld")),
        ({"stream": True}, call(), None),
    ],
)
def test_each_condition_holds_and_fails(when: dict[str, Any], holds: Any, fails: Any) -> None:
    policies = compiled(rules({"when": when, "use": "large"}))
    if "stream" in when:
        holds.is_stream, fails = True, call()
    assert [c.model for c in choose(policies, holds, fails)] == ["large", "small"]


def test_all_conditions_of_a_rule_must_hold_and_the_first_rule_wins() -> None:
    policies = compiled(
        rules(
            {"name": "both", "when": {"tools": True, "session": True}, "use": "large"},
            {"name": "one", "when": {"tools": True}, "use": "medium"},
            {"name": "never", "when": {"tools": True}, "use": "other"},
        )
    )
    found = choose(policies, call(tools=[{}], user="u"), call(tools=[{}]), call())
    assert [choice.model for choice in found] == ["large", "medium", "small"]
    assert [choice.labels["rule"] for choice in found] == ["both", "one", "otherwise"]
    assert found[0].reason == "rule 'both' holds (session: yes, tools: yes): large"


def test_without_rules_it_is_always_otherwise() -> None:
    for policies in (rules(), {"auto": {"kind": "rules", "otherwise": "small"}}):
        assert choose_one(compiled(policies), call(tools=[{}])).model == "small"


def test_a_rule_may_lead_to_a_policy() -> None:
    policies = compiled(rules({"when": {"tools": False}, "use": "smart"}) | {"smart": LEARNED})
    found = choose_one(policies, call("auto", "hard"))
    assert (found.model, found.policy, found.labels) == (
        "large",
        "auto",
        {"rule": "rule 0", "via": "smart"},
    )
    assert found.decision is not None


def test_a_rule_whose_target_may_not_answer_is_passed_over() -> None:
    section = rules(
        {"when": {"regex": "easy"}, "use": "large"},
        {"when": {"regex": "eas"}, "use": "smart"},
    ) | {"smart": {**LEARNED, "models": ["medium", "large"]}}
    no_tools = {"tools": False}
    policies = compiled(section, models=pool(large=no_tools))
    assert choose_one(policies, call(tools=[{}])).model == "medium"
    fewer = compiled(section, models=pool(large=no_tools, medium=no_tools))
    assert choose_one(fewer, call(tools=[{}])).labels["rule"] == "otherwise"
    none = compiled(section, models=pool(large=no_tools, medium=no_tools, small=no_tools))
    with pytest.raises(IneligibleError, match="tools rules out large, medium, small"):
        choose(none, call(tools=[{}]))
