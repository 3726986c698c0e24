"""What a failed attempt is billed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from crossroads.gateway.call import Body
from crossroads.gateway.contracts import Choice, Tally, Usage
from crossroads.gateway.vocabulary import SpentError
from crossroads.prompts.experts.base import ExpertError
from tests.gateway.engine.running import CHOICE, an_engine, run_complete
from tests.gateway.engine.scripted import Scripted, Step, a_call, answer, failing, gathered

PROMPT = Usage(80 // 4 + 1, 0, True)  # of a request of 80 bytes


def first_bill(step: Step, *, is_stream: bool = False) -> Usage | None:
    """Return what the first of two models is billed, the second of which answers."""
    engine, _ = an_engine(Scripted("a", step), Scripted("b"), retries=0)
    tally = Tally()
    call = a_call(is_stream=is_stream)
    if is_stream:
        asyncio.run(gathered(engine, call, CHOICE, tally))
    else:
        asyncio.run(engine.complete(call, CHOICE, tally))
    assert [attempt.model for attempt in tally.attempts] == ["a", "b"]
    assert tally.usage == tally.attempts[1].usage == Usage(7, 5)
    return tally.attempts[0].usage


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("error", "usage"),
    [
        (SpentError("no end", status=504, code="upstream_timeout"), PROMPT),
        (SpentError("no answer", usage=Usage(9, 4)), Usage(9, 4)),
        (ExpertError("no connection", status=503, code="upstream_unavailable"), None),
        (ExpertError("slow down", status=429), None),
    ],
)
def test_a_failed_attempt_is_billed_where_the_upstream_had_the_request(
    is_stream: bool, error: ExpertError, usage: Usage | None
) -> None:
    assert first_bill(Step(events=[], error=error), is_stream=is_stream) == usage


@pytest.mark.parametrize(
    ("given", "usage"),
    [
        ({"choices": []}, PROMPT),
        ({"choices": ["text"]}, PROMPT),
        ({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}, Usage(9, 4)),
        ({"choices": [5], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}, Usage(9, 4)),
    ],
)
def test_an_answer_of_the_wrong_shape_is_billed_as_told_else_its_prompt(
    given: Body, usage: Usage
) -> None:
    assert first_bill(Step(answer=given)) == usage


def test_an_empty_stream_is_billed_its_prompt() -> None:
    assert first_bill(Step(events=[]), is_stream=True) == PROMPT


def test_a_refusal_of_the_request_is_not_billed() -> None:
    assert first_bill(failing(404)) is None


@pytest.mark.parametrize(("inputs", "outputs"), [(-5000, -5000), (7, -1), (7, 10**12)])
@pytest.mark.parametrize("is_stream", [False, True])
def test_counts_that_cannot_be_true_are_replaced_by_an_estimate(
    is_stream: bool, inputs: int, outputs: int
) -> None:
    told: dict[str, Any] = {"prompt_tokens": inputs, "completion_tokens": outputs}
    choice = Choice(model="a")
    if is_stream:
        events = [*Step().events][:-1]
        engine, _ = an_engine(Scripted("a", Step(events=[*events, {"choices": [], "usage": told}])))
        tally = Tally()
        asyncio.run(gathered(engine, a_call(is_stream=True), choice, tally))
        expected = Usage(21, 9, True)
    else:
        engine, _ = an_engine(Scripted("a", Step(answer=answer("x" * 41, usage=told))))
        _, tally = run_complete(engine, choice)
        expected = Usage(21, 11, True)
    assert tally.usage == tally.attempts[0].usage == expected
