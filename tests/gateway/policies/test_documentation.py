"""The YAML of the page about policies is what the settings take."""

from __future__ import annotations

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
