"""From cards to upstreams."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from crossroads.core.errors import CrossroadsError, InputError
from crossroads.gateway.upstreams import (
    UpstreamSettings,
    build_upstream,
    build_upstreams,
    check_upstream,
)
from crossroads.prompts.pool import ModelCard, Pool, parse_pool
from tests.core.http.servers import SHORT


def test_every_card_of_a_pool_gets_its_upstream() -> None:
    pool = Pool(
        models=(
            ModelCard(name="a", endpoint="https://host/v1"),
            ModelCard(name="b", endpoint="https://host/v1", api="anthropic"),
            ModelCard(name="c", endpoint="local:units"),
            ModelCard(name="d", api="litellm"),
        )
    )
    upstreams = build_upstreams(pool, timeouts=SHORT)
    assert {name: upstream.name for name, upstream in upstreams.items()} == {
        name: name for name in pool.names
    }
    assert upstreams["a"].speaks == {"chat", "completions", "embeddings"}
    assert upstreams["b"].speaks == {"chat", "messages"}


@pytest.mark.parametrize(
    ("card", "match"),
    [
        ({}, "has no endpoint"),
        ({"endpoint": "ftp://host"}, "is not a URL"),
        ({"endpoint": "http://host", "proxy": "socks5://host:1"}, "proxy is not"),
        ({"endpoint": "http://host", "proxy": "http://${NO_SUCH_VARIABLE}:1"}, "not set"),
        ({"endpoint": "http://host", "timeouts": {"idle": 0}}, "expected seconds > 0"),
    ],
)
def test_a_card_that_cannot_work_is_refused_before_anything_starts(
    card: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        build_upstream(ModelCard(name="m", **card), timeouts=SHORT)


@pytest.mark.parametrize(
    "fields",
    [{"max_idle": -1}, {"idle_s": 0}, {"max_waiting": -1}, {"max_answer_mib": 0}, {"typo": 1}],
)
def test_settings_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        UpstreamSettings(**fields)


def test_importing_the_room_loads_no_heavy_library() -> None:
    heavy = "aiohttp torch litellm redis asyncpg httpx starlette"
    code = (
        "import sys, crossroads.gateway.upstreams.build\n"
        f"print([name for name in {heavy.split()} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_yaml_of_the_documentation_is_valid() -> None:
    page = (Path(__file__).parents[3] / "docs/gateway/upstreams.md").read_text("utf-8")
    cards, section = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    pool = parse_pool(cards, where="documentation")
    assert set(build_upstreams(pool, timeouts=SHORT)) == set(pool.names)
    shown = UpstreamSettings.model_validate(yaml.safe_load(section)["upstreams"])
    assert shown == UpstreamSettings()


@pytest.mark.parametrize(
    ("card", "match"),
    [
        ({"headers": {"x-team": "${NO_SUCH_VARIABLE}"}}, "NO_SUCH_VARIABLE is not set"),
        ({"api_key": "${NO_SUCH_VARIABLE}"}, "NO_SUCH_VARIABLE is not set"),
        ({"api": "anthropic", "api_key": "${NO_SUCH_VARIABLE}"}, "NO_SUCH_VARIABLE is not set"),
        ({"ca_file": "/no/such.pem"}, "ca_file '/no/such.pem': no such file"),
        ({"api": "litellm"}, "litellm"),
        ({"api": "litellm", "headers": {"x-team": "${NO_SUCH_VARIABLE}"}}, "NO_SUCH_VARIABLE"),
    ],
)
def test_what_would_stop_the_start_is_found_without_it(
    card: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_there = "headers" in card
    monkeypatch.setitem(sys.modules, "litellm", ModuleType("litellm") if is_there else None)
    model = ModelCard.model_validate({"name": "m", "endpoint": "https://127.0.0.1:9/v1", **card})
    upstream = build_upstream(model, timeouts=SHORT)
    with pytest.raises(CrossroadsError, match=match) as found:
        check_upstream(upstream)
    with pytest.raises(CrossroadsError) as stopped:
        asyncio.run(upstream.start())
    assert str(found.value) == str(stopped.value)


def test_what_can_start_has_nothing_to_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    for fields in ({}, {"api": "anthropic"}, {"endpoint": "local:units"}):
        given = {"name": "m", "endpoint": "https://127.0.0.1:9/v1", "api_key": "${A_KEY}", **fields}
        check_upstream(build_upstream(ModelCard.model_validate(given), timeouts=SHORT))
