"""What is set aside for a call before anybody is asked."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from crossroads.gateway.call import Body, Call
from crossroads.gateway.contracts import Check, Choice, Usage
from crossroads.gateway.governance import PriceBook
from crossroads.gateway.pipeline import Run
from crossroads.prompts.pool import ModelCard

PRICES = {"cheap": 0.01, "dear": 0.04, "big": 0.5, "bigger": 0.75, "judge": 0.25}
CARDS = [ModelCard(name=name, price_per_call=usd) for name, usd in PRICES.items()]


class Judge(Check):
    async def accepts(self, call: Call, model: str, answer: Body) -> Mapping[str, Any]:
        raise AssertionError("nobody answers here")

    def most(self, call: Call) -> tuple[str, Usage]:
        return "judge", Usage(100, 8)


class Rules(Check):
    async def accepts(self, call: Call, model: str, answer: Body) -> Mapping[str, Any]:
        raise AssertionError("nobody answers here")


def reserved(*, is_hedging: bool = False, **fields: Any) -> float:
    services: Any = SimpleNamespace(prices=PriceBook(CARDS), is_hedging=is_hedging)
    nothing: Any = None
    body: Body = {"messages": [{"role": "user", "content": "hi"}]}
    run = Run(services, nothing, nothing, Call(dialect="chat", model="auto", body=body))
    return run._most(Choice(model="cheap", **fields))


def test_the_dearest_that_may_answer_is_set_aside() -> None:
    assert reserved() == pytest.approx(0.01)
    assert reserved(fallbacks=("dear", "cheap")) == pytest.approx(0.04)


def test_of_two_bounds_on_the_output_the_larger_is_set_aside() -> None:
    card = ModelCard(name="m", price_out=10.0)
    services: Any = SimpleNamespace(prices=PriceBook([card]), is_hedging=False)
    nothing: Any = None
    for larger, smaller in (
        ("max_tokens", "max_completion_tokens"),
        ("max_completion_tokens", "max_tokens"),
    ):
        body: Body = {"messages": [], larger: 100_000, smaller: 1}
        run = Run(services, nothing, nothing, Call(dialect="chat", model="m", body=body))
        assert run._most(Choice(model="m")) == pytest.approx(1.0)


def test_a_hedge_is_set_aside_beside_the_first() -> None:
    assert reserved(hedge_after=0.1) == pytest.approx(0.02)
    assert reserved(is_hedging=True) == pytest.approx(0.02)


def test_a_cascade_sets_aside_the_refused_answer_its_judge_and_the_next_one() -> None:
    later = ("big", "bigger")
    assert reserved(check=Rules(), escalate_to=later) == pytest.approx(0.01 + 0.75)
    assert reserved(check=Judge(), escalate_to=later) == pytest.approx(0.01 + 0.75 + 0.25)
