"""Servers that lack an API their model was said, or assumed, to have."""

from __future__ import annotations

import asyncio

import pytest

from crossroads.gateway.call import Dialect
from crossroads.gateway.contracts import Order, Tally
from tests.gateway.engine.running import CHOICE, an_engine, tried
from tests.gateway.engine.scripted import TEXT, Scripted, Step, a_call, failing, gathered, text_of


def lacking(order: Order) -> Step:
    """A server that has chat and nothing else."""
    return Step() if order.dialect == "chat" else failing(404, "upstream_error")


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_model_whose_server_lacks_an_api_is_asked_in_chat(
    is_stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first = Scripted("a", lacking, speaks=("chat", "completions"))
    engine, _ = an_engine(first, Scripted("b"), breaker={"consecutive_failures": 1})

    def ask() -> Tally:
        call, tally = a_call("completions", is_stream=is_stream, prompt="?"), Tally()
        call.native = {"model": "auto", "prompt": "?"}
        if is_stream:
            assert text_of(asyncio.run(gathered(engine, call, CHOICE, tally))) == TEXT
        else:
            asyncio.run(engine.complete(call, CHOICE, tally))
        return tally

    tally = ask()
    assert tried(tally) == [("a", 0, "no_api"), ("a", 200, "")]
    assert (tally.model, tally.dialect, tally.num_fallbacks) == ("a", "chat", 0)
    assert engine.health()["a"]["state"] == "closed"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert tried(ask()) == [("a", 200, "")]
    assert [order.dialect for order in first.orders] == ["completions", "chat", "chat"]


@pytest.mark.parametrize(
    ("speaks", "code"),
    [
        (("chat", "completions"), "model_not_found"),
        (("completions",), "upstream_error"),
        (("chat",), "upstream_error"),
    ],
)
def test_a_model_that_is_unknown_upstream_is_a_failure(
    speaks: tuple[Dialect, ...], code: str
) -> None:
    first = Scripted("a", failing(404, code), speaks=speaks)
    engine, _ = an_engine(first, Scripted("b"))
    call, tally = a_call("completions", prompt="?"), Tally()
    call.native = {"model": "auto", "prompt": "?"}
    asyncio.run(engine.complete(call, CHOICE, tally))
    assert [model for model, _, _ in tried(tally)] == ["a", "b"]
    assert engine.health()["a"]["num_failures"] == 1
