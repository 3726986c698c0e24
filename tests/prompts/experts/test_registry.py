from __future__ import annotations

import asyncio

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.core.http.timeouts import Timeouts
from crossroads.prompts.experts.http import HttpExpert
from crossroads.prompts.experts.registry import build_expert
from crossroads.prompts.experts.smollm import SmolLM
from crossroads.prompts.experts.tools import ToolExpert
from crossroads.prompts.pool import ModelCard, read_pool


def test_every_model_of_the_shipped_local_pool_has_an_expert() -> None:
    experts = {card.name: build_expert(card) for card in read_pool("local")}
    assert {name: type(expert) for name, expert in experts.items()} == {
        "smollm2": SmolLM,
        "calculator": ToolExpert,
        "units": ToolExpert,
    }
    assert all(expert.name == name for name, expert in experts.items())


def test_a_url_is_called_over_http_with_the_given_timeouts() -> None:
    card = ModelCard(name="m", endpoint="https://host:8443/v1/", api_key="k")
    expert = build_expert(card, timeouts=Timeouts(idle=1))
    assert isinstance(expert, HttpExpert)
    assert expert.timeouts.idle == 1


@pytest.mark.parametrize(
    "endpoint", ["host/v1", "ftp://host", "http://", "http://[::1", "https://h:x"]
)
def test_what_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(InputError, match=r"model 'm': endpoint .*is not a URL"):
        build_expert(ModelCard(name="m", endpoint=endpoint))


def test_a_card_without_an_endpoint_is_told_what_to_add() -> None:
    with pytest.raises(InputError, match="model 'm' has no endpoint; add 'endpoint:"):
        build_expert(ModelCard(name="m"))


def test_an_unknown_local_expert_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'calculator'"):
        build_expert(ModelCard(name="m", endpoint="local:calculater"))


def test_a_tool_declines_what_is_not_its_trade_and_counts_no_tokens() -> None:
    expert = build_expert(ModelCard(name="c", endpoint="local:calculator"))
    messages = [{"role": "user", "content": "Who are you?"}]
    answer = asyncio.run(expert.complete({"messages": messages}))
    assert answer["choices"][0]["message"]["content"] == "I can only do arithmetic."
    assert answer["usage"]["total_tokens"] == 0
    assert answer["model"] == "c"


def test_a_tool_streams_what_it_answers() -> None:
    expert = build_expert(ModelCard(name="u", endpoint="local:units"))
    request = {"messages": [{"role": "user", "content": "2 km in m"}], "stream": True}

    async def read() -> str:
        chunks = [chunk async for chunk in expert.stream(request)]
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

    assert asyncio.run(read()) == "2000 meters"
