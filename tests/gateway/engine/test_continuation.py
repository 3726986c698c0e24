"""Streams that break after they began: continued where that is safe, else ended with an error."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from crossroads.gateway.call import Event
from crossroads.gateway.contracts import Choice, Tally, Usage
from crossroads.gateway.engine import Engine, EngineSettings
from crossroads.prompts.experts.base import ExpertError
from tests.gateway.engine.scripted import (
    TEXT,
    WORDS,
    FakeTime,
    Scripted,
    Step,
    a_call,
    chunk,
    chunks,
    cut,
    failing,
    finishes,
    gathered,
    gathered_until,
    num_openings,
    text_of,
)

CHOICE = Choice(model="a", fallbacks=("b", "c"))
STALLED = ExpertError("no further bytes within 1 s", status=504, code="upstream_timeout")
MALFORMED = ExpertError("malformed event in the stream", code="upstream_invalid")


def an_engine(
    *upstreams: Scripted, prefills: tuple[str, ...] = ("a", "b", "c"), **settings: Any
) -> Engine:
    fake = FakeTime()
    return Engine(
        {upstream.name: upstream for upstream in upstreams},
        EngineSettings(**settings),
        prefills=prefills,
        clock=fake,
        sleep=fake.sleep,
    )


def run(
    engine: Engine, choice: Choice = CHOICE, **body: Any
) -> tuple[list[Event], ExpertError | None, Tally]:
    tally = Tally()
    events, error = asyncio.run(
        gathered_until(engine, a_call(is_stream=True, **body), choice, tally)
    )
    return events, error, tally


def goes_on(words: tuple[str, ...], *, echo: str = "", batch: int = 1) -> Scripted:
    """A model that continues with these words."""
    return Scripted("b", Step(events=chunks((echo, *words) if echo else words, id="other")))


@pytest.mark.parametrize("error", [None, STALLED, MALFORMED], ids=["cut", "stall", "malformed"])
@pytest.mark.parametrize("after", range(1, len(WORDS) + 2))
def test_a_stream_that_breaks_after_k_events_is_continued_as_one_answer(
    error: ExpertError | None, after: int
) -> None:
    second = goes_on(WORDS[after - 1 :])
    events, failed, tally = run(an_engine(Scripted("a", cut(after, error=error)), second))
    assert failed is None
    assert text_of(events) == TEXT == tally.text
    assert num_openings(events) == 1
    assert finishes(events) == ["stop"]
    assert {event["id"] for event in events} == {"up"}
    assert tally.is_complete
    assert tally.answer is not None
    assert tally.answer["choices"][0]["message"]["content"] == TEXT
    assert [attempt.status for attempt in tally.attempts] == [error.status if error else 502, 200]
    sent = second.orders[0].body["messages"][1:]
    so_far = "".join(WORDS[: after - 1]).rstrip()
    assert sent == ([{"role": "assistant", "content": so_far}] if so_far else [])


def test_the_usage_of_all_parts_is_summed_for_the_client_and_billed_per_attempt() -> None:
    events, _, tally = run(an_engine(Scripted("a", cut(4)), goes_on(WORDS[3:])))
    produced = len("The quick brown ")
    first = Usage(21, produced // 4, True)
    assert [attempt.usage for attempt in tally.attempts] == [first, Usage(7, 5)]
    assert tally.usage == Usage(28, 9, True)
    told = [event["usage"] for event in events if event.get("usage")]
    assert told == [{"prompt_tokens": 28, "completion_tokens": 9, "total_tokens": 37}]


def test_usage_is_estimated_for_a_continuation_that_tells_none() -> None:
    second = Scripted("b", Step(events=chunks(WORDS[3:], usage=False)))
    _, _, tally = run(an_engine(Scripted("a", cut(4)), second))
    usage = tally.attempts[1].usage
    assert usage is not None
    assert usage.is_estimated
    assert usage.input_tokens == 21 + 4  # the prompt, and the text it was given
    assert usage.output_tokens == -(-len("".join(WORDS[3:])) // 4)


def test_without_prefill_a_stream_cut_mid_answer_ends_with_an_error() -> None:
    second = goes_on(WORDS[3:])
    events, error, tally = run(an_engine(Scripted("a", cut(4)), second, prefills=()))
    assert error is not None
    assert error.code == "upstream_cut"
    assert text_of(events) == "The quick brown " == tally.text
    assert finishes(events) == []
    assert second.orders == []
    assert not tally.is_complete
    assert tally.answer is None
    assert tally.usage == Usage(21, 4, True)


def test_without_prefill_a_stream_cut_before_any_text_is_begun_anew() -> None:
    second = goes_on(WORDS)
    events, error, _ = run(an_engine(Scripted("a", cut(1)), second, prefills=()))
    assert error is None
    assert text_of(events) == TEXT
    assert num_openings(events) == 1
    assert len(second.orders[0].body["messages"]) == 1


def test_continuation_can_be_switched_off() -> None:
    engine = an_engine(Scripted("a", cut(1)), goes_on(WORDS), continuation={"enabled": False})
    events, error, _ = run(engine)
    assert error is not None
    assert len(events) == 1


def test_only_models_that_prefill_go_on_and_the_same_one_does_last() -> None:
    first = Scripted("a", cut(4), Step(events=chunks(WORDS[3:])))
    second, third = Scripted("b"), Scripted("c", failing(500))
    events, error, tally = run(an_engine(first, second, third, prefills=("a", "c"), retries=0))
    assert error is None
    assert text_of(events) == TEXT
    assert [attempt.model for attempt in tally.attempts] == ["a", "c", "a"]
    assert second.orders == []


def test_a_continuation_that_breaks_is_continued_in_turn() -> None:
    second = Scripted("b", cut(3, chunks(WORDS[2:])))
    third = Scripted("c", Step(events=chunks(WORDS[4:])))
    events, error, tally = run(an_engine(Scripted("a", cut(3)), second, third))
    assert error is None
    assert text_of(events) == TEXT
    assert num_openings(events) == 1
    assert [attempt.status for attempt in tally.attempts] == [502, 502, 200]
    assert third.orders[0].body["messages"][-1]["content"] == "The quick brown fox"
    sizes = [usage.output_tokens for a in tally.attempts if (usage := a.usage) is not None]
    assert sizes == [3, 3, 5]


def test_the_error_is_of_what_broke_when_nobody_can_go_on() -> None:
    engine = an_engine(
        Scripted("a", cut(4), failing(500)),
        Scripted("b", failing(400)),
        Scripted("c", failing(500)),
        retries=0,
    )
    events, error, tally = run(engine)
    assert error is not None
    assert error.code == "upstream_cut"
    assert str(error) == "4 attempts failed (a, b, c); the last: the stream broke off"
    assert finishes(events) == []
    assert not tally.is_complete


def test_an_error_is_never_its_own_cause() -> None:
    _, error, _ = run(an_engine(Scripted("a", cut(4)), prefills=()), Choice(model="a"))
    assert error is not None
    assert error.__cause__ is not error


def test_attempts_bound_continuations_too() -> None:
    upstreams = [Scripted(name, cut(2)) for name in "abc"]
    _, error, tally = run(an_engine(*upstreams, max_attempts=4, retries=5))
    assert error is not None
    assert len(tally.attempts) == 4


def test_an_error_that_is_the_requests_own_is_not_continued() -> None:
    filtered = ExpertError("filtered", status=400, code="content_filter")
    second = goes_on(WORDS[3:])
    _, error, _ = run(an_engine(Scripted("a", cut(4, error=filtered)), second))
    assert error is filtered
    assert second.orders == []


def test_more_than_one_choice_is_not_continued() -> None:
    second = goes_on(WORDS)
    _, error, _ = run(an_engine(Scripted("a", cut(1)), second), n=2)
    assert error is not None
    assert second.orders == []


def test_a_second_choice_nobody_asked_for_is_not_continued() -> None:
    other = chunk({"content": "x"})
    other["choices"][0]["index"] = 1
    second = goes_on(WORDS)
    _, error, _ = run(an_engine(Scripted("a", cut(2, [chunks()[0], other])), second))
    assert error is not None
    assert second.orders == []


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "refusal", "audio"])
def test_what_is_not_plain_text_is_not_continued(field: str) -> None:
    events = [chunk({"role": "assistant"}), chunk({field: "hm"}), chunk({"content": "So"})]
    second = goes_on(WORDS)
    _, error, _ = run(an_engine(Scripted("a", cut(3, events)), second))
    assert error is not None
    assert second.orders == []


def test_a_finished_answer_that_breaks_afterwards_is_not_continued() -> None:
    second = goes_on(WORDS)
    _, error, tally = run(an_engine(Scripted("a", cut(len(WORDS) + 2)), second))
    assert error is not None
    assert second.orders == []
    assert not tally.is_complete


def test_what_was_produced_counts_against_the_clients_limit() -> None:
    second = goes_on(WORDS[3:])
    run(an_engine(Scripted("a", cut(4)), second), max_tokens=10, max_completion_tokens=3)
    body = second.orders[0].body
    assert (body["max_tokens"], body["max_completion_tokens"]) == (6, 1)


def test_a_continued_request_gets_the_fields_its_server_wants_and_a_new_identity() -> None:
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    second = goes_on(WORDS[3:])
    engine = an_engine(Scripted("a", cut(4)), second, continuation={"fields": {"b": fields}})
    call = a_call(is_stream=True)
    call.headers = {b"idempotency-key": b"k", b"traceparent": b"t"}
    asyncio.run(gathered(engine, call, CHOICE, Tally()))
    order = second.orders[0]
    assert order.body.items() >= fields.items()
    assert order.headers == [(b"traceparent", b"t")]


def test_a_prefill_of_the_clients_own_goes_on_in_the_same_message() -> None:
    second = goes_on(WORDS[3:])
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Well: "}]
    run(an_engine(Scripted("a", cut(4)), second), messages=messages)
    sent = second.orders[0].body["messages"]
    assert sent == [messages[0], {"role": "assistant", "content": "Well: The quick brown"}]
    assert len(messages) == 2


@pytest.mark.parametrize("width", [1, 2, 5, 100])
@pytest.mark.parametrize("echo", ["The quick brown ", "The quick brown", " ", ""])
def test_a_repeated_prefill_is_cut_whatever_its_pieces(echo: str, width: int) -> None:
    whole = echo + "".join(WORDS[3:])
    whole = whole if echo != "The quick brown" else echo + " " + "".join(WORDS[3:])
    pieces = tuple(whole[i : i + width] for i in range(0, len(whole), width))
    second = Scripted("b", Step(events=chunks(pieces)))
    events, _, tally = run(an_engine(Scripted("a", cut(4)), second))
    assert text_of(events) == TEXT
    assert tally.text == TEXT
    assert num_openings(events) == 1


def test_a_continuation_that_only_begins_like_the_answer_is_kept_whole() -> None:
    second = Scripted("b", Step(events=chunks(("The quick", " end"))))
    events, _, _ = run(an_engine(Scripted("a", cut(4)), second))
    assert text_of(events) == "The quick brown The quick end"
    second = Scripted("b", Step(events=chunks(("The quick",))))
    events, _, _ = run(an_engine(Scripted("a", cut(4)), second))
    assert text_of(events) == "The quick brown The quick"


def test_leaving_during_a_continuation_cancels_it_and_bills_both_parts() -> None:
    async def main() -> None:
        second = Scripted("b", Step(events=chunks(WORDS[3:])[:3], stalls=True))
        engine = an_engine(Scripted("a", cut(4)), second)
        tally = Tally()
        task = asyncio.create_task(gathered(engine, a_call(is_stream=True), CHOICE, tally))
        for _ in range(30):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert second.num_cancelled == 1
        assert tally.text == "The quick brown fox jumps "
        assert [attempt.status for attempt in tally.attempts] == [502, 0]
        assert tally.usage == Usage(21 + 21 + 4, 4 + 3, True)

    asyncio.run(main())


def test_a_closed_stream_closes_upstream() -> None:
    async def main() -> None:
        upstream = Scripted("a")
        stream = an_engine(upstream).stream(a_call(is_stream=True), CHOICE, tally := Tally())
        await anext(stream)
        await anext(stream)
        await stream.aclose()
        assert upstream.num_cancelled == 1
        assert tally.text == "The "
        assert [attempt.code for attempt in tally.attempts] == ["cancelled"]

    asyncio.run(main())


# --- other dialects ------------------------------------------------------------------------------


def messages_events(words: tuple[str, ...], *, stop: str = "end_turn") -> list[Event]:
    usage = {"input_tokens": 7, "output_tokens": 1}
    message = {"id": "msg", "type": "message", "role": "assistant", "content": [], "usage": usage}
    block = {"type": "text", "text": ""}
    deltas: list[Event] = [
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": word},
        }
        for word in words
    ]
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "ping"},
        *deltas,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]


def run_messages(
    *upstreams: Scripted, prefills: tuple[str, ...] = ("b",)
) -> tuple[list[Event], ExpertError | None, Tally]:
    call, tally = a_call("messages", is_stream=True), Tally()
    call.native = {"max_tokens": 100, "messages": [{"role": "user", "content": "?"}]}
    engine = an_engine(*upstreams, prefills=prefills)
    events, error = asyncio.run(gathered_until(engine, call, CHOICE, tally))
    return events, error, tally


@pytest.mark.parametrize("after", range(1, len(WORDS) + 4))
def test_a_broken_message_goes_on_in_its_open_block(after: int) -> None:
    done = max(0, after - 3)
    first = Scripted("a", cut(after, messages_events(WORDS)), speaks=("messages",))
    second = Scripted("b", Step(events=messages_events(WORDS[done:])), speaks=("messages",))
    events, error, tally = run_messages(first, second)
    assert error is None
    kinds = [kind for event in events if (kind := event["type"]) != "ping"]
    assert [kind for kind, _ in itertools.groupby(kinds)] == [
        *("message_start", "content_block_start", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert kinds.count("message_start") == kinds.count("content_block_start") == 1
    assert tally.text == TEXT
    assert (tally.finish, tally.is_complete, tally.dialect) == ("stop", True, "messages")
    assert tally.answer is not None
    assert tally.answer["content"] == [{"type": "text", "text": TEXT}]
    assert second.orders[0].dialect == "messages"
    if done:
        assert second.orders[0].body["messages"][-1]["role"] == "assistant"
        produced = -(-len("".join(WORDS[:done])) // 4)
        assert second.orders[0].body["max_tokens"] <= 100 - produced + 1
        told = next(e["usage"] for e in events if e["type"] == "message_delta")
        usage = tally.usage
        assert usage is not None
        assert told == {"input_tokens": 14, "output_tokens": usage.output_tokens}


def test_a_continued_message_that_only_begins_like_the_answer_is_kept_whole() -> None:
    first = Scripted("a", cut(6, messages_events(WORDS)), speaks=("messages",))
    second = Scripted("b", Step(events=messages_events(("The quick",))), speaks=("messages",))
    _, error, tally = run_messages(first, second)
    assert error is None
    assert tally.text == "The quick brown The quick"


def test_a_message_is_not_continued_in_another_dialect_or_after_its_block() -> None:
    first = Scripted("a", cut(5, messages_events(WORDS)), speaks=("messages",))
    for second in (
        Scripted("b", Step()),  # speaks chat alone
        Scripted("b", Step(events=messages_events(WORDS)), speaks=("messages",)),
    ):
        prefills = ("b",) if "chat" in second.speaks else ()
        _, error, _ = run_messages(first, second, prefills=prefills)
        assert error is not None
        assert second.orders == []
    late = Scripted("a", cut(len(WORDS) + 4, messages_events(WORDS)), speaks=("messages",))
    second = Scripted("b", Step(events=messages_events(WORDS)), speaks=("messages",))
    _, error, tally = run_messages(late, second)
    assert error is not None
    assert second.orders == []
    assert not tally.is_complete


def test_a_broken_message_is_billed_for_what_came_and_not_for_what_was_told_at_its_start() -> None:
    first = Scripted("a", cut(8, messages_events(WORDS)), speaks=("messages",))
    _, error, tally = run_messages(first, prefills=())
    assert error is not None
    assert tally.text == "The quick brown fox jumps "
    assert tally.usage == tally.attempts[0].usage == Usage(7, 7, True)


def test_a_continued_message_that_turns_to_something_else_is_an_error() -> None:
    events = messages_events(WORDS)
    events[1] = {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking"}}
    first = Scripted("a", cut(5, messages_events(WORDS)), speaks=("messages",))
    second = Scripted("b", Step(events=events), speaks=("messages",))
    _, error, tally = run_messages(first, second)
    assert error is not None
    assert not tally.is_complete


def test_a_message_with_thoughts_and_a_tool_is_put_together() -> None:
    def delta(index: int, **fields: str) -> Event:
        return {"type": "content_block_delta", "index": index, "delta": fields}

    def begin(index: int, **block: Any) -> Event:
        return {"type": "content_block_start", "index": index, "content_block": block}

    events = [
        messages_events(())[0],
        begin(0, type="thinking", thinking=""),
        delta(0, type="thinking_delta", thinking="hm"),
        delta(0, type="signature_delta", signature="s"),
        {"type": "content_block_stop", "index": 0},
        begin(1, type="tool_use", id="t", name="look", input={}),
        delta(1, type="input_json_delta", partial_json='{"a":'),
        delta(1, type="input_json_delta", partial_json="1}"),
        {"type": "content_block_stop", "index": 1},
        *messages_events((), stop="tool_use")[-2:],
    ]
    _, error, tally = run_messages(Scripted("a", Step(events=events), speaks=("messages",)))
    assert error is None
    assert tally.answer is not None
    assert tally.answer["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "tool_use", "id": "t", "name": "look", "input": {"a": 1}},
    ]
    assert (tally.text, tally.finish, tally.usage) == ("", "tool_calls", Usage(7, 5))


def text_events(words: tuple[str, ...]) -> list[Event]:
    head = {"id": "cmpl", "object": "text_completion", "created": 1, "model": "up"}
    choices = [{"index": 0, "text": word, "finish_reason": None} for word in words]
    choices.append({"index": 0, "text": "", "finish_reason": "length"})
    return [{**head, "choices": [choice]} for choice in choices]


@pytest.mark.parametrize("after", range(1, len(WORDS) + 1))
def test_a_broken_text_completion_goes_on_after_its_prompt(after: int) -> None:
    speaks = ("completions",)
    first = Scripted("a", cut(after, text_events(WORDS)), speaks=speaks)
    second = Scripted("b", Step(events=text_events(WORDS[after:])), speaks=speaks)
    call, tally = a_call("completions", is_stream=True), Tally()
    call.native = {"prompt": "Once ", "max_tokens": 50}
    engine = an_engine(first, second, prefills=())
    events, error = asyncio.run(gathered_until(engine, call, CHOICE, tally))
    assert error is None
    assert "".join(event["choices"][0]["text"] for event in events) == TEXT == tally.text
    assert second.orders[0].body["prompt"] == "Once " + "".join(WORDS[:after]).rstrip()
    assert (tally.finish, tally.is_complete) == ("length", True)
    assert tally.answer is not None
    assert tally.answer["choices"][0]["text"] == TEXT


@pytest.mark.parametrize("fields", [{"prompt": ["a"]}, {"prompt": "a", "echo": True}])
def test_text_completions_that_are_no_plain_continuation_are_not_continued(
    fields: dict[str, Any],
) -> None:
    speaks = ("completions",)
    second = Scripted("b", Step(events=text_events(WORDS)), speaks=speaks)
    engine = an_engine(Scripted("a", cut(2, text_events(WORDS)), speaks=speaks), second)
    call = a_call("completions", is_stream=True)
    call.native = fields
    _, error = asyncio.run(gathered_until(engine, call, CHOICE, Tally()))
    assert error is not None
    assert second.orders == []


def response_events(status: str = "completed") -> list[Event]:
    part = {"type": "output_text", "text": TEXT}
    item = {"type": "message", "content": [part]}
    usage = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}
    whole = {"id": "resp", "status": status, "output": [item], "usage": usage}
    deltas = [{"type": "response.output_text.delta", "delta": word} for word in WORDS]
    created: Event = {"type": "response.created", "response": {"id": "resp", "output": []}}
    return [created, *deltas, {"type": f"response.{status}", "response": whole}]


def test_a_response_fills_the_tally_and_is_never_continued() -> None:
    speaks = ("responses",)
    first = Scripted("a", Step(events=response_events()), cut(4, response_events()), speaks=speaks)
    second = Scripted("b", Step(events=response_events()), speaks=speaks)
    engine = an_engine(first, second)
    call, tally = a_call("responses", is_stream=True), Tally()
    call.native = {"input": "?"}
    _, error = asyncio.run(gathered_until(engine, call, CHOICE, tally))
    assert error is None
    assert (tally.text, tally.finish, tally.usage) == (TEXT, "stop", Usage(7, 5))
    assert tally.answer is not None
    assert tally.answer["id"] == "resp"
    tally = Tally()
    _, error = asyncio.run(gathered_until(engine, call, CHOICE, tally))
    assert error is not None
    assert second.orders == []
    assert tally.usage == Usage(21, 4, True)
