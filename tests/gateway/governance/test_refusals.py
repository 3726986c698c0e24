from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.governance import KeyGovernor
from crossroads.gateway.governance.accounts import Account
from crossroads.gateway.governance.clerk import Clerk
from crossroads.gateway.governance.leases import LeasedMeter
from crossroads.gateway.governance.refusals import duration, limit_headers
from tests.gateway.governance.asking import FakeStore, call_of, settings

LIMITS = {"requests_per_minute": 60, "requests_per_day": 61, "tokens_per_minute": 600}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, b"0s"), (-1, b"0s"), (0.0001, b"1ms"), (0.12, b"120ms"), (1, b"1s"), (1.2, b"2s")),
        *((60, b"1m0s"), (360, b"6m0s"), (59.5, b"1m0s"), (3600, b"1h0m0s"), (90_061, b"25h1m1s")),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, text: bytes) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e7))
def test_who_waits_as_long_as_is_written_has_waited_long_enough(seconds: float) -> None:
    text = duration(seconds).decode()
    if text.endswith("ms"):
        waited = int(text[:-2]) / 1000
    else:
        parts = [int(part) for part in re.findall(r"\d+", text)]
        waited = sum(part * 60**i for i, part in enumerate(reversed(parts)))
    assert seconds - 1e-9 <= waited < seconds + 1.001


def test_the_headers_are_those_of_the_dialect_called() -> None:
    governor = KeyGovernor(settings(limits=LIMITS))
    chat = asyncio.run(governor.admit(call_of(governor, max_tokens=99))).headers()
    assert dict(chat) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"59",
        b"x-ratelimit-reset-requests": dict(chat)[b"x-ratelimit-reset-requests"],
        b"x-ratelimit-limit-tokens": b"600",
        b"x-ratelimit-remaining-tokens": b"500",
        b"x-ratelimit-reset-tokens": b"10s",
    }
    call = call_of(governor, dialect="messages", max_tokens=99)
    messages = dict(asyncio.run(governor.admit(call)).headers())
    assert messages[b"anthropic-ratelimit-requests-limit"] == b"60"
    assert messages[b"anthropic-ratelimit-requests-remaining"] == b"58"
    assert messages[b"anthropic-ratelimit-tokens-remaining"] == b"400"
    reset = datetime.fromisoformat(messages[b"anthropic-ratelimit-tokens-reset"].decode())
    assert 0 < (reset - datetime.now(UTC)).total_seconds() <= 22
    assert len(messages) == 6


def test_the_limit_that_is_closest_to_being_met_is_shown() -> None:
    limits = {"requests_per_minute": 60, "requests_per_day": 20}
    governor = KeyGovernor(settings(limits=limits))
    found = dict(asyncio.run(governor.admit(call_of(governor))).headers())
    assert found[b"x-ratelimit-limit-requests"] == b"20"


def test_no_more_is_left_than_the_limit_though_the_store_refills_what_is_on_lease() -> None:
    async def run() -> None:
        store = FakeStore()
        clerk = Clerk(store, ttl_s=60.0, block_share=0.25, is_open=True)
        account = Account("x", "requests", 600, period_s=60)
        meter = LeasedMeter(account, scope="key 'a'", period="minute", clerk=clerk)
        await clerk.exchange(is_tick=True)
        asked = asyncio.create_task(meter.ask(1))
        await asyncio.sleep(0)
        await clerk.exchange(is_tick=False)
        assert await asked
        assert meter.held > 1
        later = time.monotonic_ns() + 60 * 10**9
        found = dict(limit_headers([meter], [], "chat", later))
        assert found[b"x-ratelimit-limit-requests"] == b"600"
        assert found[b"x-ratelimit-remaining-requests"] == b"600"
        assert found[b"x-ratelimit-reset-requests"] == b"0s"

    asyncio.run(run())
