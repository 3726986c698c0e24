from __future__ import annotations

from typing import Any

import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.preferences.policies import Policy, Preferences

CODE = {"name": "code", "description": "programs", "model": "big"}
LAW = {"name": "law's letter", "description": "contracts", "model": "wise"}


def parse(*entries: dict[str, Any], default: str = "small") -> Preferences:
    return Preferences.parse({"default": default, "policies": list(entries)})


def test_a_policy_goes_to_its_model_and_everything_else_to_the_default() -> None:
    preferences = parse(CODE, LAW)
    assert preferences.model_of("code") == "big"
    assert preferences.model_of("law's letter") == "wise"
    assert [preferences.model_of(route) for route in (None, "other", "unheard of")] == ["small"] * 3
    assert preferences.model_names == ("small", "big", "wise")


def test_swapping_the_mapping_changes_models_and_no_policy() -> None:
    before = parse(CODE, LAW)
    after = before.remapped({"code": "bigger"})
    assert after.policies == before.policies
    assert after.model_of("code") == "bigger"
    assert after.model_of("law's letter") == "wise"


def test_names_are_unique_even_over_different_models() -> None:
    with pytest.raises(InputError, match="'code' is described twice"):
        parse(CODE, {**CODE, "model": "other-model"})


def test_there_is_nothing_to_route_with_preferences_for_one_model() -> None:
    assert not parse(CODE, {**LAW, "model": "big"}).is_routing
    assert parse(CODE, LAW).is_routing


@pytest.mark.parametrize("name", ["", " ", "code ", "other", "Other"])
def test_a_policy_needs_a_name_of_its_own(name: str) -> None:
    with pytest.raises(InputError, match="rename it"):
        Policy(name=name, description="x")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "a", "model": "m"}, "'description' must be a text, got None"),
        ({**CODE, "modell": "m"}, "unknown field 'modell'"),
        ({**CODE, "examples": "one"}, "'examples' must be a list of texts"),
        ({**CODE, "description": " "}, "description is empty"),
        ("code", "expected name, description and model, got 'code'"),
    ],
)
def test_a_wrong_entry_is_named(entry: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preferences.parse({"default": "m", "policies": [entry]})


@pytest.mark.parametrize("value", [None, [], {}, {"default": "m"}, {"policies": [CODE]}])
def test_policies_and_default_are_needed(value: Any) -> None:
    with pytest.raises(InputError, match=r"list of policies|no default model"):
        Preferences.parse(value)


def test_a_request_brings_a_bare_list_and_keeps_the_default() -> None:
    preferences = Preferences.parse([CODE], default="small")
    assert preferences.default == "small"


def test_a_mapping_for_a_policy_nobody_describes_is_refused() -> None:
    with pytest.raises(InputError, match="'poetry', which no policy describes"):
        parse(CODE).remapped({"poetry": "m"})
