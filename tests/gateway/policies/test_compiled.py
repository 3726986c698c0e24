from __future__ import annotations

from typing import Any

import pytest

from crossroads.gateway.call import Client
from crossroads.gateway.errors import ApiError
from tests.gateway.policies.conftest import LEARNED, call, choose, choose_one, compiled, pool

PREFERENCES = {
    "kind": "preferences",
    "otherwise": "small",
    "policies": [{"name": "law", "description": "contracts and courts", "model": "large"}],
}


def test_policies_are_listed_before_models_and_auto_first() -> None:
    policies = compiled(
        {"smart": {**LEARNED, "default": True}, "ab": {"kind": "split", "weights": {"small": 1}}}
    )
    assert list(policies.names) == ["auto", "smart", "ab", "small", "medium", "large", "other"]
    assert list(compiled({}).names) == ["small", "medium", "large", "other"]


def test_a_named_model_goes_past_the_policies() -> None:
    policies = compiled({"auto": LEARNED})
    found = choose_one(policies, call("small"))
    assert (found.model, found.policy, found.propensity) == ("small", "direct", 1.0)
    assert found.reason == "the request names the model"
    assert found.decision is None


def test_auto_asks_the_policy_of_that_name_or_the_default() -> None:
    assert choose_one(compiled({"auto": LEARNED}), call("auto", "hard")).model == "large"
    found = choose_one(compiled({"smart": {**LEARNED, "default": True}}), call("auto", "hard"))
    assert (found.model, found.policy) == ("large", "smart")


def test_a_rule_in_the_name_goes_before_the_policys() -> None:
    policies = compiled({"auto": LEARNED, "cheap": {**LEARNED, "objective": {"tradeoff": 100}}})
    assert choose_one(policies, call("auto", "easy")).model == "large"
    by_rule = choose_one(policies, call("auto:tradeoff:500", "easy"))
    assert by_rule.model == "small"
    assert by_rule.decision is not None
    assert by_rule.decision.rule == "tradeoff:500"
    assert choose_one(policies, call("cheap", "easy")).model == "small"
    assert choose_one(policies, call("cheap:argmax", "easy")).model == "large"


def test_a_model_called_auto_something_is_served_by_its_name() -> None:
    policies = compiled({"auto": LEARNED}, models=pool(**{"auto:x": {}}))
    assert choose_one(policies, call("auto:x")).model == "auto:x"


@pytest.mark.parametrize("named", [{}, {"headers": {"x-crossroads-policy": "chat:7b"}}])
def test_a_key_for_a_policy_opens_its_rules_and_no_model_with_a_colon(
    named: dict[str, Any],
) -> None:
    policies = compiled({"chat": LEARNED}, models=pool(**{"chat:7b": {}}))
    listed = Client(key_id="k", models=frozenset({"chat"}))
    asked = call("chat" if named else "chat:7b", client=listed, **named)
    with pytest.raises(ApiError, match="may not ask for 'chat:7b'") as refused:
        choose(policies, asked)
    assert (refused.value.status, refused.value.code) == (403, "model_not_allowed")
    assert choose_one(policies, call("chat:argmax", client=listed)).model == "large"
    both = Client(key_id="k", models=frozenset({"chat", "chat:7b"}))
    assert choose_one(policies, call("chat:7b", client=both)).model == "chat:7b"


def test_a_policy_may_be_named_beside_the_model() -> None:
    policies = compiled({"auto": LEARNED})
    by_header = call("small", "hard", headers={"x-crossroads-policy": "auto"})
    by_field = call("small", "hard", crossroads={"policy": "auto"})
    assert [found.model for found in choose(policies, by_header, by_field)] == ["large"] * 2


@pytest.mark.parametrize("name", ["", "AUTO", "autos", "small:argmax"])
def test_other_names_are_not_found(name: str) -> None:
    with pytest.raises(ApiError, match="does not exist; GET /v1/models lists") as refused:
        choose(compiled({"auto": LEARNED}), call(name))
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("named", "param"),
    [
        ({"headers": {"x-crossroads-policy": "zz"}}, "x-crossroads-policy"),
        ({"crossroads": {"policy": "zz"}}, "crossroads.policy"),
    ],
)
def test_an_unknown_policy_beside_the_model_is_named_as_one(
    named: dict[str, Any], param: str
) -> None:
    with pytest.raises(ApiError, match="The policy 'zz' does not exist") as refused:
        choose(compiled({"auto": LEARNED}), call("small", **named))
    found = refused.value
    assert (found.status, found.code, found.param) == (404, "policy_not_found", param)
    barred = Client(key_id="k", models=frozenset({"small"}))
    with pytest.raises(ApiError, match="may not ask for 'zz'") as refused:
        choose(compiled({"auto": LEARNED}), call("small", client=barred, **named))
    assert (refused.value.status, refused.value.param) == (403, param)


def test_without_policies_auto_says_what_is_missing() -> None:
    for name in ("auto", "auto:tradeoff:5"):
        with pytest.raises(ApiError, match="has no policy 'auto'; name a model or a policy"):
            choose(compiled({}), call(name))


def test_a_rule_needs_a_learned_policy_and_the_error_tells_what_was_asked_instead() -> None:
    policies = compiled({"auto": LEARNED, "said": PREFERENCES})
    with pytest.raises(ApiError) as refused:
        choose(policies, call("said:tradeoff:5"))
    assert refused.value.status == 404
    assert "rule 'tradeoff:5' needs a policy of kind 'learned'" in str(refused.value)
    assert "'said' is of kind 'preferences'; ask for plain 'said'" in str(refused.value)
    assert "--router" not in str(refused.value)  # one is loaded


@pytest.mark.parametrize("rule", ["tradeof:5", "tradeoff:x", "tradeoff:-1", "budget:0.01"])
def test_a_wrong_rule_is_400_not_a_failure(rule: str) -> None:
    with pytest.raises(ApiError) as refused:
        choose(compiled({"auto": LEARNED}), call(f"auto:{rule}"))
    assert (refused.value.status, refused.value.code) == (400, "invalid_rule")


@pytest.mark.parametrize("content", ["", "  ", 5, None, []])
def test_there_is_nothing_to_route_by_without_text(content: object) -> None:
    policies = compiled({"auto": LEARNED})
    with pytest.raises(ApiError, match="No message holds text") as refused:
        choose(policies, call("auto", content))
    assert refused.value.status == 400
    assert choose_one(policies, call("small", content)).model == "small"


def test_a_key_may_ask_only_for_what_it_lists() -> None:
    policies = compiled({"auto": LEARNED, "other-policy": LEARNED})
    client = Client(key_id="k1", models=frozenset(("auto", "small", "medium")))
    assert choose_one(policies, call("auto", "hard", client=client)).model == "medium"
    assert choose_one(policies, call("auto:argmax", "hard", client=client)).model == "medium"
    assert choose_one(policies, call("small", client=client)).model == "small"
    for name in ("large", "other-policy", "other-policy:argmax"):
        with pytest.raises(ApiError, match="'k1' may not ask for") as refused:
            choose(policies, call(name, client=client))
        assert refused.value.status == 403
    sneaky = call("small", client=client, headers={"x-crossroads-policy": "other-policy"})
    with pytest.raises(ApiError, match="may not ask for"):
        choose(policies, sneaky)


def test_everything_is_described_as_plain_data_and_healthy() -> None:
    import json

    policies = compiled(
        {
            "auto": LEARNED,
            "ab": {"kind": "split", "weights": {"small": 1, "auto": 1}},
            "kept": {"kind": "sticky", "policy": "ab"},
            "words": PREFERENCES,
            "steps": {
                "kind": "cascade",
                "steps": ["small", "large"],
                "check": {"kind": "rules", "min_chars": 3},
            },
            "watched": {"kind": "shadow", "base": "small", "candidate": "auto"},
            "some": {"kind": "canary", "base": "small", "candidate": "large", "share": 0.1},
            "first": {
                "kind": "rules",
                "rules": [{"when": {"tools": True}, "use": "large"}],
                "otherwise": "small",
            },
        }
    )
    told = json.loads(json.dumps(policies.describe()))
    kinds = {name: part["kind"] for name, part in told.items()}
    assert kinds == {
        "auto": "learned",
        "ab": "split",
        "kept": "sticky",
        "words": "preferences",
        "steps": "cascade",
        "watched": "shadow",
        "some": "canary",
        "first": "rules",
    }
    assert all(part["version"] and part["models"] for part in told.values())
    assert json.loads(json.dumps(policies.health()))["state"] == "ok"
    policies.close()


def test_versions_change_with_settings_targets_and_artefacts_only() -> None:
    def version(name: str, **fields: object) -> object:
        policies = compiled(
            {"auto": {**LEARNED, **fields}, "ab": {"kind": "split", "weights": {"auto": 1}}}
        )
        return policies.describe()[name]["version"]

    assert version("auto") == version("auto")
    assert version("auto") != version("auto", seed=1)
    assert version("ab") != version("ab", seed=1)


def test_versions_change_with_fallbacks_and_with_what_cards_say() -> None:
    section = {"auto": LEARNED, "ab": {"kind": "split", "weights": {"auto": 1}}}

    def versions(**more: Any) -> list[object]:
        told = compiled(section, **more).describe()
        return [told[name]["version"] for name in ("auto", "ab")]

    base = versions()
    for changed in (
        versions(fallbacks={"large": ["other"]}),
        versions(models=pool(small={"tools": False})),
        versions(models=pool(small={"residency": ["eu"]})),
    ):
        assert not set(base) & set(changed)
    assert versions(models=pool(small={"description": "another text"})) == base


def test_a_reload_keeps_sessions_estimates_and_the_watch_for_drift() -> None:
    section = {
        "auto": {**LEARNED, "drift": {"window": 20}},
        "kept": {"kind": "sticky", "policy": "auto"},
    }
    before = compiled(section)
    choose(before, call("kept", "hard", user="u"), call("auto", "easy"))
    after = compiled(section, fallbacks={"small": ["other"]})
    after.adopt(before)
    kept, known = choose(after, call("kept", "no-large hard", user="u"), call("auto", "easy"))
    assert (kept.model, kept.labels["sticky"]) == ("large", "kept")
    assert kept.version == after.describe()["kept"]["version"]
    assert known.model == "large"
    told = after.health()["policies"]["auto"]
    assert (told["misses"], told["drift"]["prompts"]) == (0, 2)
    assert after.describe()["auto"]["frontier"]["operating_point"]["num_prompts"] == 2


def test_nothing_chosen_by_fallbacks_of_before_outlives_a_reload() -> None:
    section = {"auto": LEARNED, "kept": {"kind": "sticky", "policy": "auto"}}
    before = compiled(section, fallbacks={"large": ["other"]})
    after = compiled(section, fallbacks={"large": ["medium"]})
    choose(before, call("auto", "hard"), call("kept", "hard", user="u"))
    after.adopt(before)
    choose(before, call("auto", "hard"))  # still served by the policy before
    found = choose(after, call("auto", "hard"), call("kept", "hard", user="u"))
    assert [choice.fallbacks for choice in found] == [("medium",)] * 2
    assert "sticky" not in found[1].labels


def test_policies_before_and_after_a_reload_share_estimates_and_no_choice() -> None:
    section = {"auto": LEARNED, "other-auto": {**LEARNED, "num_fallbacks": 2}}
    before = compiled(section, fallbacks={"large": ["other"]})
    choose(before, call("auto", "hard"), call("other-auto", "hard"), call("auto", "easy"))
    after = compiled(section, fallbacks={"large": ["medium"]})
    after.adopt(before)
    for _ in range(3):  # both serve for a while
        for name in section:
            old = choose_one(before, call(name, "hard"))
            new = choose_one(after, call(name, "hard"))
            assert (old.fallbacks, new.fallbacks) == (("other",), ("medium",))
            assert old.version != new.version
    choose(before, call("auto", "learnt later"))
    choose(after, call("auto", "learnt later"), call("auto", "easy"))
    assert after.health()["policies"]["auto"]["misses"] == 0


def test_a_session_whose_answers_are_checked_ends_with_a_reload() -> None:
    """The check of before asks its judge through what the reload takes down."""
    section = {
        "c": {
            "kind": "cascade",
            "steps": ["small", "large"],
            "check": {"kind": "rules", "min_chars": 1},
        },
        "kept": {"kind": "sticky", "policy": "c"},
    }
    before, after = compiled(section), compiled(section)
    choose(before, call("kept", user="u"))
    after.adopt(before)
    assert "sticky" not in choose_one(after, call("kept", user="u")).labels


def test_a_floor_of_quality_warns_that_pacing_cannot_make_it_cheaper() -> None:
    floor = {**LEARNED, "objective": {"min_cost_above_quality": 0.5}}
    policies = compiled({"auto": floor, "other-rule": LEARNED})
    (warning,) = policies.warnings
    assert warning.startswith("policies.auto.objective: ")
    assert "a paced budget cannot" in warning
    found = choose_one(policies, call("auto", "hard"), price=1e6)
    assert found.model == choose_one(policies, call("auto", "hard")).model
    assert "cost-price" not in found.labels
    assert compiled({"auto": LEARNED}).warnings == ()


def test_a_policy_that_changed_starts_anew() -> None:
    before = compiled({"auto": LEARNED, "kept": {"kind": "sticky", "policy": "auto"}})
    choose(before, call("kept", "hard", user="u"))
    changed = {**LEARNED, "objective": {"max_quality_under_usd": 0.01}}
    after = compiled({"auto": changed, "kept": {"kind": "sticky", "policy": "auto"}})
    after.adopt(before)
    found = choose_one(after, call("kept", "hard", user="u"))
    assert (found.model, "sticky" in found.labels) == ("medium", False)


def test_a_session_with_a_model_that_is_gone_ends_with_a_reload() -> None:
    section = {"kept": {"kind": "sticky", "policy": "ab"}}
    ab = {"kind": "split", "weights": {"small": 1}, "fallbacks": ["medium"]}
    before = compiled({**section, "ab": ab}, models=pool(extra={}))
    choose(before, call("kept", user="u"))
    after = compiled({**section, "ab": ab})
    after.adopt(before)
    assert "sticky" not in choose_one(after, call("kept", user="u")).labels
