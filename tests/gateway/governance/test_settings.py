from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from crossroads.gateway.governance import GovernanceSettings, KeySettings

HASH = "sha256:" + "0" * 64


def key(**fields: Any) -> dict[str, Any]:
    return {"name": "a", "hash": HASH, **fields}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"keys": [{"name": "a"}]}, "either 'hash'"),
        ({"keys": [key(secret="x" * 20)]}, "either 'hash'"),
        ({"keys": [{"name": "a", "secret": "short"}]}, "16 to 256 printable"),
        ({"keys": [{"name": "a", "secret": "with space in the middle"}]}, "printable"),
        ({"keys": [{"name": "a b", "hash": HASH}]}, "1 to 64 of the letters"),
        ({"keys": [{"name": "a", "hash": "md5:00"}]}, "sha256: and 64 digits"),
        ({"keys": [key(), key()]}, "key 'a' is given twice"),
        ({"keys": [key(team="none")]}, "team 'none'"),
        ({"keys": [key(limits={"requests_per_minute": 0})]}, "greater than or equal to 1"),
        ({"keys": [key(limits={"request_per_minute": 1})]}, "Extra inputs"),
        ({"keys": [key(budgets=[{"usd": -1}])]}, "greater than 0"),
        ({"keys": [key(budgets=[{"usd": float("nan")}])]}, "finite|greater than 0"),
        ({"keys": [key(budgets=[{"usd": 1, "per": "year"}])]}, "expected hour, day"),
        ({"keys": [key(budgets=[{"usd": 1}, {"usd": 2}])]}, "budget per 'month' is given twice"),
        ({"keys": [key(budgets=[{"usd": 1, "traffic": [1.0] * 23}])]}, "24 weights"),
        ({"keys": [key(budgets=[{"usd": 1, "traffic": [0.0] * 24}])]}, "24 weights"),
        ({"keys": [key(budgets=[{"usd": 1, "alert_at": [80]}])]}, "less than or equal to 1"),
        ({"store": "postgres://host"}, "expected memory, sqlite:PATH"),
        ({"store": "sqlite:"}, "expected memory, sqlite:PATH"),
        ({"lease_ttl_s": 0.1}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_right_is_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        GovernanceSettings.model_validate(given)


def test_a_secret_is_not_shown_where_settings_are_printed() -> None:
    settings = KeySettings(name="a", secret="a-long-enough-secret")
    assert "enough" not in repr(settings)
    assert "enough" not in repr(GovernanceSettings(keys=(settings,)))


def test_times_are_utc_where_they_name_no_zone() -> None:
    text = "{name: a, hash: '" + HASH + "', expires: 2030-01-31}"
    settings = KeySettings.model_validate(yaml.safe_load(text))
    assert settings.expires is not None
    assert settings.expires.isoformat() == "2030-01-31T00:00:00+00:00"


def test_a_schema_shows_the_pattern_of_a_name() -> None:
    name = KeySettings.model_json_schema()["properties"]["name"]
    assert (name["type"], name["pattern"]) == ("string", "^(?:[A-Za-z0-9][A-Za-z0-9._@-]{0,63})$")
