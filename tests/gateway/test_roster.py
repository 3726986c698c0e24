from __future__ import annotations

import asyncio
from typing import Any

import pytest

from crossroads.core.errors import UnavailableError
from crossroads.gateway.roster import Roster
from crossroads.prompts.pool import ModelCard

A, B = ModelCard(name="a", endpoint="http://a/v1"), ModelCard(name="b", endpoint="http://b/v1")


class Fake:
    def __init__(self, card: ModelCard) -> None:
        self.name = card.name
        self.events: list[str] = []

    async def start(self) -> None:
        if self.name == "broken":
            raise UnavailableError("it is broken")
        self.events.append("start")

    async def close(self) -> None:
        self.events.append("close")


def build(roster: Roster, *cards: ModelCard, setting: str = "s") -> dict[str, Any]:
    return roster.build(cards, Fake, setting=setting)  # type: ignore[arg-type, return-value]


def test_what_two_configurations_want_alike_is_started_once_and_closed_last() -> None:
    async def run() -> None:
        roster = Roster()
        first = build(roster, A, B)
        await roster.start(first)
        second = build(roster, A)
        await roster.start(second)
        assert second["a"] is first["a"]
        await roster.stop(first)
        assert (first["a"].events, first["b"].events) == (["start"], ["start", "close"])
        await roster.stop(second)
        assert first["a"].events == ["start", "close"]
        assert build(roster, A)["a"] is not first["a"]

    asyncio.run(run())


def test_another_card_or_setting_is_another_upstream() -> None:
    async def run() -> None:
        roster = Roster()
        first = build(roster, A)
        await roster.start(first)
        changed = A.model_copy(update={"endpoint": "http://c/v1"})
        assert build(roster, changed)["a"] is not first["a"]
        assert build(roster, A, setting="other")["a"] is not first["a"]
        await roster.stop(first)

    asyncio.run(run())


def test_none_is_left_running_where_one_cannot_start() -> None:
    async def run() -> None:
        roster = Roster()
        found = build(roster, A, ModelCard(name="broken", endpoint="http://x/v1"))
        with pytest.raises(UnavailableError, match="it is broken"):
            await roster.start(found)
        assert found["a"].events == ["start", "close"]
        await roster.stop(found)  # again, as a server does at its end
        assert found["a"].events == ["start", "close"]

    asyncio.run(run())


def test_what_is_being_closed_is_not_taken_for_running() -> None:
    class Slow(Fake):
        async def close(self) -> None:
            await asyncio.sleep(0.01)
            self.events.append("close")

    async def run() -> None:
        roster = Roster()
        first = roster.build([A], Slow, setting="s")  # type: ignore[arg-type]
        await roster.start(first)
        second = roster.build([A], Slow, setting="s")  # type: ignore[arg-type]
        await asyncio.gather(roster.stop(first), roster.start(second))
        events = second["a"].events  # type: ignore[attr-defined]
        assert events[-1] == "start"
        await roster.stop(second)
        assert events[-1] == "close"

    asyncio.run(run())
