"""Cascades: answer with the cheap model, verify, give it or escalate."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from crossroads.gateway.call import Body, Call, Event
from crossroads.gateway.contracts import Check, Choice, Tally, Usage
from crossroads.gateway.engine import Engine, EngineSettings
from crossroads.gateway.vocabulary import SpentError
from crossroads.prompts.experts.base import ExpertError
from tests.gateway.engine.scripted import (
    TEXT,
    WORDS,
    Scripted,
    Step,
    a_call,
    answer,
    chunks,
    cut,
    failing,
    finishes,
    gathered,
    num_openings,
    text_of,
)

STREAMS = pytest.mark.parametrize("is_stream", [False, True])


class Judge(Check):
    """Accepts, refuses, or fails, and remembers what it was asked."""

    def __init__(self, accepted: bool = True, error: ExpertError | None = None) -> None:
        self._accepted, self._error = accepted, error
        self.asked: list[tuple[str, Body]] = []

    async def accepts(self, call: Call, model: str, answer: Body) -> Mapping[str, Any]:
        self.asked.append((model, answer))
        if self._error is not None:
            raise self._error
        return {"accepted": self._accepted, "reason": "as told", "coverage": 0.9}


def choice(judge: Judge, *escalate_to: str, **fields: Any) -> Choice:
    return Choice(model="cheap", check=judge, escalate_to=escalate_to, **fields)


def run(engine: Engine, choice: Choice, call: Call) -> tuple[Tally, str, list[Event]]:
    tally = Tally()
    if call.is_stream:
        events = asyncio.run(gathered(engine, call, choice, tally))
        return tally, text_of(events), events
    body = asyncio.run(engine.complete(call, choice, tally))
    return tally, body["choices"][0]["message"]["content"], []


def an_engine(*upstreams: Scripted, **settings: Any) -> Engine:
    settings = {"retries": 0, **settings}
    return Engine(
        {upstream.name: upstream for upstream in upstreams},
        EngineSettings(**settings),
        prefills=("strong", "spare"),
    )


CHEAP = answer("cheap answer", usage={"prompt_tokens": 3, "completion_tokens": 2})


@STREAMS
def test_an_accepted_answer_is_given_and_nobody_else_is_asked(is_stream: bool) -> None:
    judge, strong = Judge(), Scripted("strong")
    cheap = Scripted("cheap", Step(answer=CHEAP))
    call = a_call(is_stream=is_stream)
    tally, text, events = run(an_engine(cheap, strong), choice(judge, "strong"), call)
    assert text == "cheap answer" == tally.text
    assert judge.asked == [("cheap", CHEAP)]
    assert strong.orders == []
    assert tally.verdict == {"accepted": True, "reason": "as told", "coverage": 0.9}
    assert tally.usage == Usage(3, 2)
    assert (tally.model, tally.finish, tally.is_complete) == ("cheap", "stop", True)
    assert tally.answer is CHEAP
    if is_stream:
        assert num_openings(events) == 1
        assert finishes(events) == ["stop"]
        assert events[-1]["usage"] == CHEAP["usage"]
        assert call.phases.first_token is not None


@STREAMS
def test_a_refused_answer_is_escalated_and_both_are_billed(is_stream: bool) -> None:
    strong = Scripted("strong")
    engine = an_engine(Scripted("cheap", Step(answer=CHEAP)), strong)
    tally, text, _ = run(engine, choice(Judge(False), "strong"), a_call(is_stream=is_stream))
    assert text == TEXT
    assert (tally.model, tally.usage) == ("strong", Usage(7, 5))
    assert [attempt.usage for attempt in tally.attempts] == [Usage(3, 2), Usage(7, 5)]
    assert tally.verdict is not None
    assert not tally.verdict["accepted"]
    assert tally.is_complete


@STREAMS
def test_a_verifier_that_fails_refuses(is_stream: bool) -> None:
    judge = Judge(error=ExpertError("no scorer"))
    engine = an_engine(Scripted("cheap", Step(answer=CHEAP)), Scripted("strong"))
    tally, text, _ = run(engine, choice(judge, "strong"), a_call(is_stream=is_stream))
    assert text == TEXT
    assert tally.verdict == {"accepted": False, "reason": "The verifier failed: no scorer"}


@STREAMS
def test_the_next_in_line_is_asked_when_escalation_fails(is_stream: bool) -> None:
    engine = an_engine(
        Scripted("cheap", Step(answer=CHEAP)), Scripted("strong", failing(500)), Scripted("spare")
    )
    tally, text, _ = run(
        engine, choice(Judge(False), "strong", "spare"), a_call(is_stream=is_stream)
    )
    assert text == TEXT
    assert [attempt.model for attempt in tally.attempts] == ["cheap", "strong", "spare"]


@STREAMS
def test_a_refused_answer_is_given_and_marked_when_nobody_else_can_answer(is_stream: bool) -> None:
    engine = an_engine(Scripted("cheap", Step(answer=CHEAP)), Scripted("strong", failing(500)))
    tally, text, _ = run(engine, choice(Judge(False), "strong"), a_call(is_stream=is_stream))
    assert text == "cheap answer"
    assert tally.model == "cheap"
    assert tally.verdict is not None
    assert not tally.verdict["accepted"]
    assert "status 500" in tally.verdict["escalation_failed"]


@STREAMS
def test_a_refused_answer_is_an_error_where_the_settings_want_that(is_stream: bool) -> None:
    engine = an_engine(
        Scripted("cheap", Step(answer=CHEAP)),
        Scripted("strong", failing(503)),
        give_refused=False,
    )
    with pytest.raises(ExpertError, match="2 attempts failed") as raised:
        run(engine, choice(Judge(False), "strong"), a_call(is_stream=is_stream))
    assert raised.value.status == 503


@STREAMS
def test_without_anybody_to_escalate_to_the_verdict_goes_along(is_stream: bool) -> None:
    engine = an_engine(Scripted("cheap", Step(answer=CHEAP)))
    tally, text, _ = run(engine, choice(Judge(False)), a_call(is_stream=is_stream))
    assert text == "cheap answer"
    assert tally.verdict == {"accepted": False, "reason": "as told", "coverage": 0.9}


@STREAMS
def test_a_cheap_model_that_fails_is_an_escalation(is_stream: bool) -> None:
    judge = Judge()
    engine = an_engine(Scripted("cheap", failing(500)), Scripted("strong"))
    tally, text, _ = run(engine, choice(judge, "strong"), a_call(is_stream=is_stream))
    assert text == TEXT
    assert judge.asked == []
    assert tally.verdict is not None
    assert tally.verdict["reason"].startswith("There was no answer")


@STREAMS
def test_one_attempt_is_left_for_the_escalation_and_none_is_made_beyond_the_bound(
    is_stream: bool,
) -> None:
    cheap, strong = Scripted("cheap", failing(500)), Scripted("strong")
    engine = an_engine(cheap, strong, retries=9, max_attempts=3)
    tally, text, _ = run(engine, choice(Judge(), "strong"), a_call(is_stream=is_stream))
    assert text == TEXT
    assert [attempt.model for attempt in tally.attempts] == ["cheap", "cheap", "strong"]
    engine = an_engine(Scripted("cheap", Step(answer=CHEAP)), strong, max_attempts=1)
    tally, text, _ = run(engine, choice(Judge(False), "strong"), a_call(is_stream=is_stream))
    assert text == "cheap answer"
    assert len(tally.attempts) == 1
    assert tally.verdict is not None
    assert "used up" in tally.verdict["escalation_failed"]


@STREAMS
def test_a_wrong_request_is_not_escalated(is_stream: bool) -> None:
    strong = Scripted("strong")
    engine = an_engine(Scripted("cheap", failing(422)), strong)
    with pytest.raises(ExpertError) as raised:
        run(engine, choice(Judge(), "strong"), a_call(is_stream=is_stream))
    assert raised.value.status == 422
    assert strong.orders == []


def test_an_escalation_that_breaks_is_continued() -> None:
    engine = an_engine(
        Scripted("cheap", Step(answer=CHEAP)),
        Scripted("strong", cut(4)),
        Scripted("spare", Step(events=chunks(WORDS[3:]))),
    )
    call = a_call(is_stream=True)
    tally, text, events = run(engine, choice(Judge(False), "strong", "spare"), call)
    assert text == TEXT
    assert num_openings(events) == 1
    assert tally.is_complete


def test_an_escalation_that_breaks_for_good_is_an_error_not_the_refused_answer() -> None:
    async def main() -> None:
        engine = an_engine(
            Scripted("cheap", Step(answer=CHEAP)),
            Scripted("strong", cut(4)),
            continuation={"enabled": False},
        )
        tally, events = Tally(), []
        with pytest.raises(ExpertError):
            async for batch in engine.stream(
                a_call(is_stream=True), choice(Judge(False), "strong"), tally
            ):
                events += batch
        assert text_of(events) == "The quick brown "
        assert not tally.is_complete
        assert tally.answer is None

    asyncio.run(main())


def test_the_verifier_sees_chat_whatever_api_was_called() -> None:
    judge = Judge()
    cheap = Scripted("cheap", Step(answer=CHEAP), speaks=("chat", "messages"))
    call = a_call("messages")
    call.native = {"max_tokens": 5, "messages": []}
    tally = Tally()
    asyncio.run(an_engine(cheap).complete(call, choice(judge), tally))
    assert cheap.orders[0].dialect == "chat"
    assert cheap.orders[0].body is call.body
    assert tally.dialect == "chat"


def test_embeddings_are_not_verified() -> None:
    judge = Judge()
    vectors = {"data": [{"embedding": [0.5]}]}
    cheap = Scripted("cheap", Step(answer=vectors), speaks=("embeddings",))
    call = a_call("embeddings", input="?")
    assert asyncio.run(an_engine(cheap).complete(call, choice(judge), Tally())) is vectors
    assert judge.asked == []


@STREAMS
def test_what_a_judging_model_cost_is_billed_and_is_no_fallback(is_stream: bool) -> None:
    class Asking(Judge):
        async def accepts(self, call: Call, model: str, answer: Body) -> Mapping[str, Any]:
            told = {"prompt_tokens": 40, "completion_tokens": 1}
            return {**await super().accepts(call, model, answer), "judge": "third", "usage": told}

    cheap = Scripted("cheap", Step(answer=CHEAP))
    tally, _, _ = run(an_engine(cheap), choice(Asking(), "strong"), a_call(is_stream=is_stream))
    billed = [(attempt.model, attempt.code, attempt.usage) for attempt in tally.attempts]
    assert billed == [("cheap", "", Usage(3, 2)), ("third", "judge", Usage(40, 1))]
    assert (tally.model, tally.num_fallbacks) == ("cheap", 0)


@STREAMS
def test_a_model_that_judges_uses_up_no_attempt(is_stream: bool) -> None:
    class Asking(Judge):
        async def accepts(self, call: Call, model: str, answer: Body) -> Mapping[str, Any]:
            return {**await super().accepts(call, model, answer), "judge": "third", "usage": {}}

    engine = an_engine(Scripted("cheap", Step(answer=CHEAP)), Scripted("strong"), max_attempts=2)
    call = a_call(is_stream=is_stream)
    tally, text, _ = run(engine, choice(Asking(False), "strong"), call)
    assert text == TEXT
    assert [attempt.model for attempt in tally.attempts] == ["cheap", "third", "strong"]


@pytest.mark.parametrize("told", [{}, {"prompt_tokens": -40, "completion_tokens": 1}, None])
def test_what_a_judging_model_did_not_tell_is_estimated(told: Any) -> None:
    class Asking(Judge):
        async def accepts(self, call: Call, model: str, answer: Body) -> Mapping[str, Any]:
            return {"accepted": True, "reason": "", "judge": "third", "usage": told}

    tally, _, _ = run(an_engine(Scripted("cheap", Step(answer=CHEAP))), choice(Asking()), a_call())
    assert tally.attempts[1].usage == Usage(21 + 3, 1, True)


@pytest.mark.parametrize("is_estimated", [False, True])
def test_what_a_check_estimated_is_marked(is_estimated: bool) -> None:
    class Asking(Judge):
        async def accepts(self, call: Call, model: str, answer: Body) -> Mapping[str, Any]:
            verdict = {"accepted": True, "reason": "", "judge": "third"}
            told = {"prompt_tokens": 40, "completion_tokens": 1}
            return {**verdict, "usage": told, "usage_estimated": is_estimated}

    tally, _, _ = run(an_engine(Scripted("cheap", Step(answer=CHEAP))), choice(Asking()), a_call())
    assert tally.attempts[1].usage == Usage(40, 1, is_estimated)


@STREAMS
@pytest.mark.parametrize("given", [KeyError("logprobs"), TimeoutError(), 5, None])
def test_a_check_with_a_defect_refuses_and_costs_no_answer(
    is_stream: bool, given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Defect(Judge):
        async def accepts(self, call: Call, model: str, answer: Body) -> Mapping[str, Any]:
            if isinstance(given, Exception):
                raise given
            return given  # type: ignore[no-any-return]

    engine = an_engine(Scripted("cheap", Step(answer=CHEAP)))
    tally, text, _ = run(engine, choice(Defect()), a_call(is_stream=is_stream))
    assert text == "cheap answer"
    assert tally.verdict is not None and not tally.verdict["accepted"]
    assert str(tally.verdict["reason"]).startswith("The verifier failed: ")
    assert bool(caplog.records) != isinstance(given, TimeoutError)


def test_a_check_leaves_time_for_whoever_is_asked_after_it() -> None:
    class Endless(Judge):
        async def accepts(self, call: Call, model: str, answer: Body) -> Mapping[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

    engine = an_engine(Scripted("cheap", Step(answer=CHEAP)), Scripted("strong"), deadline_s=0.05)
    tally, text, _ = run(engine, choice(Endless(), "strong"), a_call())
    assert text == TEXT
    assert tally.verdict is not None
    assert tally.verdict["reason"] == "The verifier failed: there was no verdict in time"
    tally, text, _ = run(engine, choice(Endless()), a_call())
    assert text == "cheap answer"


LATE = SpentError("silent", status=504, code="upstream_timeout")


@pytest.mark.parametrize("error", [LATE, None, ExpertError("status 500", status=500)])
def test_a_model_that_was_asked_and_gave_no_verdict_is_billed_its_question(
    error: ExpertError | None,
) -> None:
    class Silent(Judge):
        async def accepts(self, call: Call, model: str, answer: Body) -> Mapping[str, Any]:
            if error is None:
                await asyncio.Event().wait()
            return await super().accepts(call, model, answer)

        def most(self, call: Call) -> tuple[str, Usage] | None:
            return "third", Usage(1000, 10)

    engine = an_engine(Scripted("cheap", Step(answer=CHEAP)), deadline_s=0.05)
    tally, _, _ = run(engine, choice(Silent(error=error)), a_call())
    billed = [(attempt.model, attempt.status, attempt.usage) for attempt in tally.attempts[1:]]
    is_asked = error is None or isinstance(error, SpentError)
    assert billed == ([("third", 0, Usage(21 + 3, 0, True))] if is_asked else [])


def test_a_verified_model_that_answers_404_in_chat_is_not_asked_in_another_api() -> None:
    cheap = Scripted("cheap", failing(404), speaks=("chat", "completions"))
    call = a_call("completions", prompt="?")
    call.native = {"model": "auto", "prompt": "?"}
    run(an_engine(cheap, Scripted("strong")), choice(Judge(), "strong"), call)
    assert [order.dialect for order in cheap.orders] == ["chat"]
