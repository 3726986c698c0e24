from __future__ import annotations

from collections.abc import Iterator

import pytest

from crossroads.core.http.timeouts import Timeouts
from crossroads.gateway.engine import EngineSettings
from crossroads.gateway.upstreams import build_upstreams
from crossroads.prompts.pool import ModelCard
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.serving import FakeRouter, gateway_of, serving

MODELS = (
    *("ok", "usage", "norole", "whole", "slow-0.3", "slow-1", "slow-30"),
    *(f"status-{code}" for code in (302, 400, 401, 403, 404, 429, 500, 503)),
    *(
        "html",
        "error",
        "error-401",
        "hangup",
        "cut",
        "cut-0",
        "cut-3",
        "half",
        "stall-0",
        "stall-3",
        "midway",
    ),
    *("malformed-0", "malformed-2", "notchunk", "empty", "onlydone", "nodone", "nofinish"),
    *("notlast", "lingers", "bytes", "split", "crlf", "comments", "long-4000"),
)
SHORT = Timeouts(connect=0.5, first_byte=0.4, idle=0.4, total=2.0)


@pytest.fixture(scope="session")
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as running:
        yield running


@pytest.fixture(scope="session")
def router() -> FakeRouter:
    return FakeRouter("ok", "usage")


@pytest.fixture(scope="session")
def url(upstream: FakeUpstream, router: FakeRouter) -> Iterator[str]:
    """A gateway over one upstream per behaviour of the fake upstream, with a fake router."""
    cards = [ModelCard(name=n, endpoint=upstream.url, api_key="upstream-key") for n in MODELS]
    cards.append(ModelCard(name="down", endpoint="http://127.0.0.1:9/v1"))
    cards.append(ModelCard(name="renamed", endpoint=upstream.url, upstream_model="ok"))
    upstreams = build_upstreams(cards, timeouts=SHORT)
    patient = EngineSettings(retries=0, max_retry_after_s=60.0)  # nobody rests: all tests share it
    with serving(gateway_of(upstreams, router, failures=patient)) as running:
        yield running
