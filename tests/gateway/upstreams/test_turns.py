"""Places and time of calls without a connection of ours."""

from __future__ import annotations

import asyncio
import time

import pytest

from crossroads.gateway.contracts import Order
from crossroads.gateway.upstreams.failures import Failures
from crossroads.gateway.upstreams.settings import UpstreamSettings
from crossroads.gateway.upstreams.turns import Turns
from crossroads.prompts.experts.base import ExpertError
from crossroads.prompts.pool import ModelCard


def turns(limit: int | None = None, total: float = 100.0) -> Turns:
    card = ModelCard(name="m", endpoint="local:units", max_parallel=limit)
    settings = UpstreamSettings(max_waiting=0)
    return Turns(card, total=total, settings=settings, failures=Failures("model 'm'"))


def order(deadline: float | None = None) -> Order:
    return Order(dialect="chat", body={}, deadline=deadline)


def test_the_sooner_of_both_deadlines_holds() -> None:
    async def check() -> None:
        soon = time.monotonic() + 1.0
        async with turns().take(order(soon)) as deadline:
            assert deadline == soon
        async with turns(total=0.5).take(order(soon)) as deadline:
            assert deadline < soon

    asyncio.run(check())


def test_a_place_is_given_back_whatever_happens() -> None:
    async def check() -> None:
        mine = turns(limit=1)
        assert mine.gate is not None
        asked = order()
        with pytest.raises(KeyError):
            async with mine.take(asked):
                with pytest.raises(ExpertError, match="1 calls are running"):
                    async with mine.take(order()):
                        raise AssertionError
                raise KeyError
        assert mine.gate.num_inside == 0
        assert asked.phases.upstream > 0

    asyncio.run(check())
