from __future__ import annotations

from typing import Any

import pytest

from crossroads.core.errors import InputError
from crossroads.gateway.contracts import Choice
from crossroads.gateway.policies.eligibility import IneligibleError
from crossroads.prompts.fitted import FittedRouter
from tests.gateway.policies.conftest import LEARNED, call, choose, choose_one, compiled, pool

CHECK = {"kind": "rules", "min_chars": 10}


def cascade(*steps: str, check: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    policy = {"kind": "cascade", "steps": list(steps), "check": check or CHECK, **more}
    return {"auto": policy, "smart": LEARNED}


def test_the_cheap_step_answers_and_the_others_stand_by() -> None:
    found = choose_one(compiled(cascade("small", "medium", "large")), call())
    assert found.model == "small"
    assert found.escalate_to == ("medium", "large")
    assert found.fallbacks == ("medium", "large")
    assert found.check is not None
    assert "medium then large where rules refuses" in found.reason


def test_steps_that_may_not_answer_are_left_out() -> None:
    no_tools = {"tools": False}
    section = cascade("small", "medium", "large")
    tools = call(tools=[{}])
    middle = choose_one(compiled(section, models=pool(medium=no_tools)), tools)
    assert (middle.model, middle.escalate_to) == ("small", ("large",))
    first = choose_one(compiled(section, models=pool(small=no_tools)), tools)
    assert (first.model, first.escalate_to) == ("medium", ("large",))
    assert first.check is not None
    last = choose_one(compiled(section, models=pool(small=no_tools, medium=no_tools)), tools)
    assert (last.model, last.escalate_to, last.check) == ("large", (), None)
    none = compiled(section, models=pool(small=no_tools, medium=no_tools, large=no_tools))
    with pytest.raises(IneligibleError):
        choose(none, tools)


def test_the_first_step_may_be_a_policy() -> None:
    found = choose_one(compiled(cascade("smart", "large", "other")), call(text="no-large hard"))
    assert (found.model, found.escalate_to) == ("medium", ("large", "other"))
    assert found.decision is not None
    again = choose_one(compiled(cascade("smart", "large")), call(text="hard"))
    assert (again.model, again.escalate_to, again.check) == ("large", (), None)


def sdm(calibrated: FittedRouter, *steps: str, **learned: Any) -> Any:
    section = {
        "auto": {"kind": "cascade", "steps": ["smart", *steps], "check": {"kind": "sdm"}},
        "smart": {**LEARNED, **learned},
    }
    return compiled(section, router=calibrated)


def test_what_the_verifier_accepts_is_answered_cheaply_at_a_stated_level(
    calibrated: FittedRouter,
) -> None:
    """Each answer of the verifier leads where it should; the level is told."""
    policies = sdm(calibrated, "medium", "other")
    texts = [f"Describe a red flower in the garden, poem {n}" for n in range(0, 40, 2)]
    texts += [f"What is {n} times {n + 3}? sum {n}" for n in range(1, 40, 2)]
    texts.append("\u0436\u0436\u0436 \u4e2d\u6587 qqq")
    seen = set()
    for text in texts:
        expected = calibrated.route(text).details["verification"]["answer"]
        found: Choice = choose_one(policies, call(text=text))
        seen.add(expected)
        assert found.labels["sdm"] == expected
        assert found.labels["coverage-level"] == "0.9"
        assert "at the level 0.9 of accuracy" in found.reason
        assert found.check is None
        chosen = calibrated.route(text).model
        wanted = {"accept": chosen, "escalate": "medium", "abstain": "other"}[expected]
        assert found.model == wanted
        assert found.costs == pytest.approx({"small": 0.001, "large": 0.1})
    assert {"accept", "escalate"} <= seen


def test_an_escalation_stays_with_what_may_answer(calibrated: FittedRouter) -> None:
    section = {
        "auto": {"kind": "cascade", "steps": ["smart", "medium"], "check": {"kind": "sdm"}},
        "smart": LEARNED,
    }
    policies = compiled(section, router=calibrated, models=pool(medium={"tools": False}))
    found = choose_one(policies, call(text="What is 12 times 31? sum 1", tools=[{}]))
    assert found.model in {"small", "large"}


def test_sdm_refuses_what_was_not_calibrated(calibrated: FittedRouter) -> None:
    with pytest.raises(InputError, match="was calibrated for argmax"):
        sdm(calibrated, "medium", objective={"tradeoff": 5})
    with pytest.raises(InputError, match="take the exploration out"):
        sdm(calibrated, "medium", explore={"epsilon": 0.1, "floor": 0})
    with pytest.raises(InputError, match="let it choose among all"):
        sdm(calibrated, "medium", models=["small"])
