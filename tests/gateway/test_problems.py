from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from crossroads.core.problems import Problem, problems_of
from crossroads.gateway.config import ServeConfig
from crossroads.gateway.problems import ConfigError
from crossroads.gateway.redaction import is_plain

SECRET = "hunter2"


def told(**fields: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        ServeConfig.model_validate(fields)
    return [str(p) for p in problems_of(caught.value, ServeConfig, may_tell=is_plain)]


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"kind": "lerned"}, "policies.a: unknown kind 'lerned'; did you mean 'learned'? Known: "),
        (
            {"router": "x"},
            "policies.a: 'kind' is missing; add one of: learned, preferences, rules, ",
        ),
        ({"kind": "learned"}, "policies.a.router: is missing; add it"),
        (
            {"kind": "learned", "router": "x", "objective": {"budget": 1}},
            "policies.a.objective: unknown field 'budget'; did you mean 'budget_usd'? Known: "
            "budget_usd, max_quality_under_usd, min_cost_above_quality, rule, tradeoff",
        ),
        (
            {"kind": "learned", "router": "x", "objective": {}},
            "policies.a.objective: expected exactly one of max_quality_under_usd, "
            "min_cost_above_quality, tradeoff, budget_usd, rule, got none",
        ),
        (
            {"kind": "cascade", "steps": ["s"], "check": {"kind": "sdm"}},
            "policies.a.steps: expected at least 2 entries, got 1",
        ),
        (
            {"kind": "rules", "otherwise": "s", "rules": [{"when": {"stream": []}, "use": "s"}]},
            "policies.a.rules[0].when.stream: expected true or false, got a list",
        ),
    ],
)
def test_a_wrong_policy_is_told_in_plain_words_where_it_is_written(
    policy: dict[str, Any], said: str
) -> None:
    (line,) = told(policies={"a": policy})
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("governance", "place"),
    [
        ({"keys": [{"name": "a", "secret": SECRET}]}, "governance.keys[0].secret"),
        ({"store": f"valkey://me:{SECRET}@h"}, "governance.store"),
        ({"teams": {"t": {"limits": {"parallel": SECRET}}}}, "governance.teams.t.limits.parallel"),
    ],
)
def test_what_may_be_a_secret_is_not_told(governance: dict[str, Any], place: str) -> None:
    (line,) = told(governance=governance)
    assert line.startswith(f"{place}: expected ")
    assert SECRET not in line


def test_a_value_is_told_once() -> None:
    (line,) = told(governance={"teams": {"t": {"budgets": [{"usd": 1, "per": "year"}]}}})
    assert line.count("got") == 1
    assert told(port=-1) == ["port: expected at least 0, got -1"]
    assert told(port=1.5) == ["port: expected a whole number, got 1.5"]


def test_no_word_of_the_validator_is_left() -> None:
    lines = told(
        **{"port": "x", "workers": [], "http": "h", "timeouts": {"idle": -1}, "router": 3},
        **{"cache": {"exact": 3}, "fallbacks": {"a": "b"}, "ledger": {"retention_days": "x"}},
        **{"governance": {"keys": [{"name": "b c"}], "block_share": 7}, "nme": 1},
    )
    assert len(lines) >= 10
    for line in lines:
        assert not any(word in line for word in ("Input", "Value error", "tag", "Tuple", "valid "))
        assert "\n" not in line


def test_one_problem_is_told_alone_and_several_are_counted() -> None:
    one, two = Problem("port", "is missing; add it"), Problem("", "unknown field 'x'")
    assert str(ConfigError("config c", [one])) == "config c: port: is missing; add it"
    assert str(ConfigError("config c", [two, one], remedy="; see")) == (
        "config c: unknown field 'x' (and 1 more; see)"
    )
