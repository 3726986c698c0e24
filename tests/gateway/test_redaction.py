from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from crossroads.core.errors import InputError
from crossroads.gateway.config import read_config
from crossroads.gateway.redaction import safe_url

SECRET = "only-for-this-test-0123456789"
HASH = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://me:hunter2@db:5432/x?password=hunter2", "postgresql://me:***@db:5432/x"),
        ("postgresql+asyncpg://me:hunter2@db/x", "postgresql+asyncpg://me:***@db/x"),
        ("postgresql://me:hun/ter2@db/x", "postgresql://me:***@db/x"),
        ("redis://:hun#ter2@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://:hun?ter2@host", "redis://:***@host"),
        ("redis://:hun@ter2@host", "redis://:***@host"),
        ("redis://hunter2@host", "redis://***@host"),
        ("valkey://:hunter2@host", "valkey://:***@host"),
        ("me:hunter2@host", "me:***@host"),
        ("redis://host:6379/1", "redis://host:6379/1"),
        ("unix:///run/redis.sock?password=hunter2", "unix:///run/redis.sock"),
        ("sqlite:/srv/a@b/l.db", "sqlite:/srv/a@b/l.db"),
    ],
)
def test_a_url_is_told_without_its_password(url: str, told: str) -> None:
    assert safe_url(url) == told


@pytest.mark.parametrize(
    "fields",
    [
        {"ledger": {"url": f"mysql://me:{SECRET}@db/x"}},
        {"governance": {"keys": [{"name": "a", "secret": SECRET, "team": "none"}]}},
        {"governance": {"keys": [{"name": "a", "secret": SECRET, "hash": HASH}]}},
        {"governance": {"keys": [{"name": "a", "secret": f"{SECRET} with spaces"}]}},
        {"governance": {"store": f"valkey://:{SECRET}@host"}},
        {"governance": {"keys": SECRET}},
        {"admin": {"token": SECRET[:15]}},
        {"admin": {"token": SECRET, "host": "0.0.0.0", "port": "x"}},
        {"cache": {"exact": True, "store": f"valkey://:{SECRET}@host"}},
        {"responses": {"store": f"valkey://:{SECRET}@host"}},
        {"telemetry": {"otel": {"endpoint": "http://x", "headers": [SECRET]}}},
        {"api_key": [SECRET]},
    ],
)
def test_no_error_of_the_configuration_shows_a_secret(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump(fields))
    with pytest.raises(InputError) as caught:
        read_config(path)
    assert SECRET[:15] not in str(caught.value)
    assert caught.value.__cause__ is None


def test_values_that_cannot_be_secrets_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("timeouts: {connect: soon}")
    with pytest.raises(InputError, match=r"timeouts\.connect: .*got 'soon'"):
        read_config(path)
