from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crossroads.core.errors import InputError
from crossroads.gateway.policies import PoliciesSettings, compile_policies
from tests.gateway.policies.conftest import LEARNED, Stub, compiled, pool, stub

SPLIT: dict[str, Any] = {"kind": "split"}


def cascade(*steps: str, **check: Any) -> dict[str, Any]:
    return {"kind": "cascade", "steps": list(steps), "check": check}


def rule(**when: Any) -> dict[str, Any]:
    return {"kind": "rules", "rules": [{"when": when, "use": "small"}], "otherwise": "small"}


@pytest.mark.parametrize(
    ("policies", "told"),
    [
        ({"p": {**LEARNED, "models": ["smal"]}}, r"policies\.p\.models: .*did you mean 'small'"),
        ({"p": {**LEARNED, "fallback": "smal"}}, r"policies\.p\.fallback: .*'small'"),
        ({"p": {**LEARNED, "fallbacks": ["gpt"]}}, r"policies\.p\.fallbacks: unknown model 'gpt'"),
        ({"p": {**LEARNED, "budget_us": 9}}, r"policies\.p\.budget_us: needs a fallback"),
        ({"p": {**LEARNED, "objective": {"rule": "argmx"}}}, r"policies\.p\.objective: .*'argmax'"),
        ({"p": {**LEARNED, "objective": {"budget_usd": 1}}}, r"policies\.p\.objective: "),
        ({"p": {**SPLIT, "weights": {"gpt": 1}}}, r"policies\.p\.weights: unknown model or policy"),
        ({"p": {"kind": "sticky", "policy": "p"}}, r"in a circle: p -> p"),
        (
            {"p": {"kind": "sticky", "policy": "q"}, "q": {**SPLIT, "weights": {"p": 1}}},
            r"in a circle: p -> q -> p",
        ),
        ({"small": LEARNED}, r"policies\.small: pool 'test' has a model of that name"),
        ({"a:b": LEARNED}, r"policies\.a:b: expected a name without"),
        (
            {"p": {**LEARNED, "default": True}, "q": {**LEARNED, "default": True}},
            r"policies\.q\.default: 'p' is the default already",
        ),
        (
            {"auto": LEARNED, "q": {**LEARNED, "default": True}},
            r"policies\.q\.default: the policy named 'auto'",
        ),
        ({"p": rule(regex="(")}, r"policies\.p\.rules\[0\]\.when\.regex: .*no regular expression"),
        ({"p": rule(regex="(a+)+$")}, r"policies\.p\.rules\[0\]\.when\.regex: .*possessive"),
        ({"p": rule(languages=["xx"])}, r"policies\.p\.rules\[0\]\.when\.languages: .*'xx'"),
        ({"p": cascade("small", "gpt", kind="rules", min_chars=1)}, r"policies\.p\.steps: .*'gpt'"),
        ({"p": cascade("small", "large", kind="sdm")}, r"policies\.p\.check: sdm needs"),
        ({"p": cascade("small", "large", kind="judge", model="x")}, r"p\.check\.model: .*'x'"),
        ({"p": cascade("small", "large", kind="judge", model="other")}, r"judge cannot be asked"),
        (
            {"p": cascade("small", "large", kind="rules", json_schema={"type": 5})},
            r"policies\.p\.check\.json_schema: ",
        ),
        (
            {"p": {"kind": "canary", "base": "small", "candidate": "small", "share": 0.5}},
            r"policies\.p\.candidate: is the base itself",
        ),
        (
            {
                "p": {
                    "kind": "preferences",
                    "otherwise": "gpt",
                    "policies": [{"name": "a", "description": "b", "model": "small"}],
                }
            },
            r"policies\.p\.policies: unknown model 'gpt'",
        ),
        (
            {"p": {"kind": "preferences", "otherwise": "small", "policies": [{"name": "a"}]}},
            r"policies\.p: policies\[0\]: 'description' must be a text",
        ),
    ],
)
def test_what_a_first_request_would_meet_is_named_with_its_place(
    policies: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        compiled(policies)


def test_chains_of_unknown_models_are_named() -> None:
    with pytest.raises(InputError, match=r"fallbacks\.small: unknown model 'gpt'"):
        compiled({}, fallbacks={"small": ["gpt"]})
    with pytest.raises(InputError, match=r"fallbacks\.gpt: unknown model 'gpt'"):
        compiled({}, fallbacks={"gpt": ["small"]})


def test_an_artefact_that_chooses_among_models_the_pool_lacks_is_refused() -> None:
    fewer = pool().subset(["small", "medium"])
    with pytest.raises(InputError, match=r"chooses among large, which pool 'test' lacks"):
        compiled({"p": LEARNED}, models=fewer)
    named = compiled({"p": {**LEARNED, "models": ["small", "medium"]}}, models=fewer)
    assert named.describe()["p"]["models"] == ["small", "medium"]


def test_a_router_that_does_not_load_or_decide_refuses_to_start(tmp_path: Path) -> None:
    settings = PoliciesSettings.model_validate(
        {"policies": {"p": {"kind": "learned", "router": "gone"}}}
    )
    with pytest.raises(InputError, match="no such folder"):
        compile_policies(settings, pool(), folder=tmp_path)

    class Broken(Stub):
        def _row(self, text: str) -> list[float]:
            raise RuntimeError("a matrix is singular")

    broken = stub()
    object.__setattr__(broken, "router", Broken())
    with pytest.raises(InputError, match=r"policies\.p\.router: stub cannot decide: .*singular"):
        compiled({"p": LEARNED}, router=broken)


def test_costs_that_are_unknown_refuse_an_objective_that_weighs_them() -> None:
    unpriced = stub((float("nan"),) * 3)
    with pytest.raises(InputError, match=r"policies\.p\.objective: .*cost of 'small' is unknown"):
        compiled({"p": {**LEARNED, "objective": {"tradeoff": 5}}}, router=unpriced)
    assert compiled({"p": LEARNED}, router=unpriced)


def test_a_model_named_auto_is_refused_where_a_default_would_hide_it() -> None:
    with pytest.raises(InputError, match="model named 'auto'"):
        compiled({"p": {**LEARNED, "default": True}}, models=pool(auto={}))
    with pytest.raises(InputError, match=r"policies\.auto: pool 'test' has a model"):
        compiled({"auto": LEARNED}, models=pool(auto={}))
