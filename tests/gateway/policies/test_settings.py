from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from crossroads.gateway.policies import PoliciesSettings
from crossroads.gateway.policies.settings import Objective

LEARNED = {"kind": "learned", "router": "r"}


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ({"kind": "lerned"}, "tag 'lerned'"),
        ({"kind": "learned"}, "Field required"),
        ({**LEARNED, "objective": {}}, "expected exactly one of"),
        ({**LEARNED, "objective": {"tradeoff": 1, "budget_usd": 1}}, "expected exactly one of"),
        ({**LEARNED, "objective": {"tradeoff": -1}}, "greater than or equal to 0"),
        ({**LEARNED, "explore": {"epsilon": 0.1}}, "expected floor or margin"),
        ({**LEARNED, "explore": {"epsilon": 0.1, "thompson": 1, "floor": 0}}, "exactly one of"),
        ({**LEARNED, "explore": {"epsilon": 1.5, "floor": 0}}, "less than 1"),
        ({**LEARNED, "budget_us": 0}, "greater than 0"),
        ({**LEARNED, "typo": 1}, "Extra inputs"),
        ({"kind": "split", "weights": {"a": 0}}, "expected a sum > 0"),
        ({"kind": "split", "weights": {"a": -1}}, "greater than or equal to 0"),
        ({"kind": "canary", "base": "a", "candidate": "b", "share": 1}, "less than 1"),
        (
            {"kind": "rules", "rules": [{"when": {}, "use": "a"}], "otherwise": "a"},
            "at least one condition",
        ),
        ({"kind": "cascade", "steps": ["a"], "check": {"kind": "sdm"}}, "at least 2"),
        ({"kind": "cascade", "steps": ["a", "b"], "check": {"kind": "judge"}}, "expected 'model'"),
        ({"kind": "cascade", "steps": ["a", "b"], "check": {"kind": "rules"}}, "expected one of"),
        ({"kind": "cascade", "steps": ["a", "b"], "check": {"kind": "logprobs"}}, "'least'"),
        ({"kind": "sticky", "policy": "a", "ttl_s": 0}, "greater than 0"),
    ],
)
def test_wrong_values_are_refused_with_what_was_expected(policy: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        PoliciesSettings.model_validate({"policies": {"p": policy}})


@pytest.mark.parametrize(
    ("objective", "rule"),
    [
        ({"max_quality_under_usd": 0.01}, "max-cost:0.01"),
        ({"min_cost_above_quality": 0.7}, "min-quality:0.7"),
        ({"tradeoff": 500}, "tradeoff:500"),
        ({"tradeoff": 0}, "argmax"),
        ({"budget_usd": 0.002}, "budget:0.002"),
        ({"rule": "argmax"}, "argmax"),
    ],
)
def test_an_objective_is_a_decision_rule(objective: dict[str, Any], rule: str) -> None:
    assert Objective.model_validate(objective).text() == rule
