"""The YAML of the page about policies is what the settings take."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from crossroads.gateway.policies.language import LANGUAGES
from crossroads.gateway.policies.patterns import Pattern
from tests.gateway.policies.conftest import call, choose_one, compiled

PAGE = Path(__file__).parents[3] / "docs" / "gateway" / "policies.md"


def test_the_example_compiles_and_every_policy_decides() -> None:
    text = PAGE.read_text("utf-8")
    section = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    for policy in section["policies"].values():
        if policy["kind"] == "learned":
            policy["router"] = "stub"
    policies = compiled(section["policies"], fallbacks=section["fallbacks"])
    assert len({part["kind"] for part in policies.describe().values()}) == 8
    for name in policies.names:
        assert choose_one(policies, call(name, "hard", size=100)).reason
    policies.close()


@pytest.mark.parametrize(("pattern", "length"), [("a", "4,000"), (".*", "1,000")])
def test_the_stated_limits_are_the_real_ones(pattern: str, length: str) -> None:
    text = PAGE.read_text("utf-8")
    assert f"{Pattern(pattern, where='page').length:,}" == length
    assert length in text
    assert f"{len(LANGUAGES)} of them" in text


def test_the_example_of_a_request_with_its_own_preferences_is_routed_by_them() -> None:
    yaml_text = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[0]
    kinds = yaml.safe_load(yaml_text)["policies"]["kinds"]
    page = (PAGE.parent / "dialects.md").read_text("utf-8")
    body = json.loads(re.findall(r"```json\n(.*?)```", page, re.DOTALL)[0])
    own = {name: body[name] for name in ("crossroads", "routing_preferences")}
    policies = compiled({"kinds": kinds})
    program = choose_one(policies, call(body["model"], "Mend the bug in this program.", **own))
    assert (program.model, program.labels["route"]) == ("large", "code")
    trip = choose_one(policies, call(body["model"], "Book flights for my trip.", **own))
    assert (trip.model, trip.labels["route"]) == ("small", "travel")
    policies.close()
