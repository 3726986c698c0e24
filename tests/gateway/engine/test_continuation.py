"""Streams that break after they began: continued where that is safe, else ended with an error."""

from __future__ import annotations

import asyncio

import pytest

from crossroads.gateway.contracts import Choice, Tally, Usage
from crossroads.prompts.experts.base import ExpertError
from tests.gateway.engine.continuing import CHOICE, MALFORMED, STALLED, an_engine, goes_on, run
from tests.gateway.engine.scripted import (
    TEXT,
    WORDS,
    Scripted,
    Step,
    a_call,
    chunk,
    chunks,
    cut,
    failing,
    finishes,
    gathered,
    num_openings,
    text_of,
)


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


def test_a_continued_stream_names_who_went_on() -> None:
    _, _, tally = run(an_engine(Scripted("a", cut(4)), goes_on(WORDS[3:])))
    assert (tally.model, tally.writers) == ("b", ("a", "b"))


def test_a_model_that_goes_on_itself_is_named_twice() -> None:
    first = Scripted("a", cut(4), Step(events=chunks(WORDS[3:])))
    _, _, tally = run(an_engine(first), Choice(model="a"))
    assert (tally.model, tally.writers) == ("a", ("a", "a"))


def test_a_broken_stream_that_nobody_went_on_with_is_of_who_began_it() -> None:
    first = Scripted("a", cut(4), failing(500))
    engine = an_engine(first, Scripted("b", failing(500)), retries=0)
    _, error, tally = run(engine, Choice(model="a", fallbacks=("b",)))
    assert error is not None
    assert (tally.model, tally.writers) == ("a", ())
