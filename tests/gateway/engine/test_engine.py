"""Retries and fallbacks before the first byte."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from crossroads.gateway.call import Client
from crossroads.gateway.contracts import Choice, Order, Tally, Usage
from crossroads.gateway.engine import Engine, EngineSettings
from crossroads.prompts.experts.base import ExpertError
from tests.gateway.engine.running import CHOICE, an_engine, failure_of, run_complete, tried
from tests.gateway.engine.scripted import (
    TEXT,
    FakeTime,
    Scripted,
    Step,
    a_call,
    answer,
    failing,
    gathered,
    text_of,
)


def test_a_good_answer_is_given_as_it_came_and_fills_the_tally() -> None:
    given = answer()
    engine, _ = an_engine(Scripted("a", Step(answer=given)))
    got, tally = run_complete(engine, Choice(model="a"))
    assert got is given
    assert tally.answer is given
    assert (tally.model, tally.dialect, tally.finish, tally.text) == ("a", "chat", "stop", TEXT)
    assert tally.usage == Usage(7, 5)
    assert tally.is_complete
    assert tried(tally) == [("a", 200, "")]
    assert tally.num_fallbacks == 0


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_a_failure_before_any_byte_is_retried_on_the_same_model_then_on_the_next(
    status: int,
) -> None:
    engine, fake = an_engine(Scripted("a", failing(status)), Scripted("b"), retries=2)
    _, tally = run_complete(engine)
    code = "upstream_error"
    assert tried(tally) == [("a", status, code)] * 3 + [("b", 200, "")]
    assert len(fake.slept) == 2
    assert tally.num_fallbacks == 1


@pytest.mark.parametrize("status", [408, 429, 500, 504])
def test_a_stream_that_fails_before_its_first_event_falls_back(status: int) -> None:
    async def main() -> None:
        engine, _ = an_engine(Scripted("a", failing(status)), Scripted("b"), retries=1)
        tally = Tally()
        events = await gathered(engine, a_call(is_stream=True), CHOICE, tally)
        assert text_of(events) == TEXT
        assert [attempt.model for attempt in tally.attempts] == ["a", "a", "b"]
        assert tally.model == "b"
        assert tally.is_complete

    asyncio.run(main())


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_wrong_with_the_request_goes_to_the_client_at_once(status: int) -> None:
    second = Scripted("b")
    engine, _ = an_engine(Scripted("a", failing(status, "some_code")), second)
    error, tally = failure_of(engine)
    assert (error.status, error.code) == (status, "some_code")
    assert str(error) == f"status {status}"
    assert len(tally.attempts) == 1
    assert second.orders == []
    assert engine.health()["a"]["num_failures"] == 0


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "x"), (403, "x"), (404, "model_not_found"), (402, "x"), (502, "upstream_refused")],
)
def test_an_upstreams_own_key_or_model_name_is_its_failure_and_is_not_retried(
    status: int, code: str
) -> None:
    engine, fake = an_engine(Scripted("a", failing(status, code)), Scripted("b"), retries=3)
    _, tally = run_complete(engine)
    assert tried(tally) == [("a", status, code), ("b", 200, "")]
    assert fake.slept == []
    assert engine.health()["a"]["num_failures"] == 1


def test_a_full_queue_of_our_own_sheds_load_without_blaming_the_model() -> None:
    full = failing(503, "upstream_queue_full", retry_after=1.0)
    engine, fake = an_engine(
        Scripted("a", full), Scripted("b"), retries=3, breaker={"consecutive_failures": 1}
    )
    _, tally = run_complete(engine)
    assert [attempt.model for attempt in tally.attempts] == ["a", "b"]
    assert fake.slept == []
    health = engine.health()["a"]
    assert (health["state"], health["num_failures"]) == ("closed", 0)
    error, _ = failure_of(engine, Choice(model="a"))
    assert (error.status, error.retry_after) == (503, 1.0)


def test_the_last_error_counts_the_attempts_when_all_failed() -> None:
    engine, _ = an_engine(
        Scripted("a", failing(500)),
        Scripted("b", failing(503, retry_after=1.0)),
        Scripted("c", failing(429, "rate_limited", type="rate_limit_error", param="p")),
        retries=0,
    )
    error, tally = failure_of(engine)
    assert (error.status, error.code, error.type, error.param) == (
        *(429, "rate_limited"),
        *("rate_limit_error", "p"),
    )
    assert str(error) == "3 attempts failed (a, b, c); the last: status 429"
    assert not tally.is_complete
    assert tally.usage is None


def test_backoff_is_full_jitter_of_a_doubling_bound() -> None:
    bounds = [0.1, 0.2, 0.4, 0.5, 0.5]
    waits: list[list[float]] = [[] for _ in bounds]
    for seed in range(40):
        fake = FakeTime()
        settings = EngineSettings(
            retries=5, backoff_s=0.1, backoff_max_s=0.5, breaker={"consecutive_failures": 100}
        )
        engine = Engine(
            {"a": Scripted("a", failing(500))},
            settings,
            clock=fake,
            sleep=fake.sleep,
            rng=random.Random(seed),
        )
        failure_of(engine, Choice(model="a"))
        for number, slept in enumerate(fake.slept):
            waits[number].append(slept)
    for bound, slept in zip(bounds, waits, strict=True):
        assert 0 <= min(slept) < bound / 4
        assert bound * 3 / 4 < max(slept) <= bound


def test_retry_after_is_waited_for_up_to_the_bound() -> None:
    first = Scripted("a", failing(429, retry_after=3.0), Step())
    engine, fake = an_engine(first, Scripted("b"), max_retry_after_s=3.0)
    _, tally = run_complete(engine)
    assert [attempt.model for attempt in tally.attempts] == ["a", "a"]
    assert len(fake.slept) == 1
    assert fake.slept[0] >= 3.0


def test_the_wait_between_attempts_is_upstream_time_not_the_gateways_own() -> None:
    first = Scripted("a", failing(429, retry_after=3.0), Step())
    engine, fake = an_engine(first, max_retry_after_s=3.0)
    call = a_call()
    asyncio.run(engine.complete(call, Choice(model="a"), Tally()))
    assert call.phases.upstream == pytest.approx(fake.slept[0])


def test_a_longer_retry_after_falls_back_at_once_and_leaves_the_model_alone() -> None:
    first = Scripted("a", failing(429, retry_after=30.0), Step())
    engine, fake = an_engine(first, Scripted("b"), max_retry_after_s=3.0, breaker={"jitter": 0.0})
    _, tally = run_complete(engine)
    assert [attempt.model for attempt in tally.attempts] == ["a", "b"]
    assert fake.slept == []
    assert engine.health()["a"]["opens_for_s"] == pytest.approx(30.0)
    _, tally = run_complete(engine)
    assert [attempt.model for attempt in tally.attempts] == ["b"]
    fake.now += 30.0
    _, tally = run_complete(engine)
    assert [attempt.model for attempt in tally.attempts] == ["a"]


def test_attempts_are_bounded_over_all_models() -> None:
    upstreams = [Scripted(name, failing(500)) for name in "abc"]
    engine, _ = an_engine(*upstreams, retries=3, max_attempts=5)
    _, tally = failure_of(engine)
    assert [attempt.model for attempt in tally.attempts] == ["a"] * 4 + ["b"]


def test_nothing_is_tried_after_the_deadline() -> None:
    fake = FakeTime()

    def slow(_: object) -> Step:
        fake.now += 6.0
        return failing(504, "upstream_timeout")

    first, second = Scripted("a", slow), Scripted("b", slow)
    engine = Engine(
        {"a": first, "b": second, "c": Scripted("c")},
        EngineSettings(deadline_s=10.0, retries=0),
        clock=fake,
        sleep=fake.sleep,
    )
    error, tally = failure_of(engine)
    assert error.status == 504
    assert [attempt.model for attempt in tally.attempts] == ["a", "b"]
    assert first.orders[0].deadline == second.orders[0].deadline == 1_010.0


def test_a_wait_that_would_pass_the_deadline_is_not_begun() -> None:
    first = Scripted("a", failing(503, retry_after=4.0))
    engine, fake = an_engine(first, Scripted("b"), deadline_s=3.0, max_retry_after_s=5.0)
    _, tally = run_complete(engine)
    assert [attempt.model for attempt in tally.attempts] == ["a", "b"]
    assert fake.slept == []


def test_a_jump_of_the_wall_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTime()
    wall = iter(range(0, -(10**9), -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(wall)))

    def taking(seconds: float, step: Step) -> Callable[[Order], Step]:
        def answered(_: Order) -> Step:
            fake.now += seconds
            return step

        return answered

    script = (taking(2.0, failing(500)), taking(4.0, failing(500)), taking(8.0, Step()))
    engine = Engine(
        {"a": Scripted("a", *script)}, EngineSettings(retries=2), clock=fake, sleep=fake.sleep
    )
    _, tally = run_complete(engine, Choice(model="a"))
    assert tally.is_complete
    assert [attempt.seconds for attempt in tally.attempts] == pytest.approx([2.0, 4.0, 8.0])


def test_a_model_that_cannot_be_asked_in_the_dialect_is_skipped() -> None:
    chat_only, embedder = Scripted("a"), Scripted("b", speaks=("embeddings",))
    vectors = {"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 3, "total_tokens": 3}}
    embedder._script = (Step(answer=vectors),)
    engine, _ = an_engine(chat_only, embedder)
    tally = Tally()
    call = a_call("embeddings", input="hello")
    assert asyncio.run(engine.complete(call, CHOICE, tally)) is vectors
    assert chat_only.orders == []
    assert (tally.model, tally.dialect, tally.usage) == ("b", "embeddings", Usage(3, 0))


def test_a_call_no_model_can_serve_says_so() -> None:
    engine, _ = an_engine(Scripted("a"))
    with pytest.raises(ExpertError, match="embeddings") as raised:
        asyncio.run(engine.complete(a_call("embeddings"), CHOICE, Tally()))
    assert raised.value.status == 400


def test_a_model_gets_the_native_request_only_where_it_speaks_the_dialect() -> None:
    native = {"model": "auto", "max_tokens": 9, "messages": []}
    said = {"content": [{"type": "text", "text": "hi"}], "stop_reason": "max_tokens"}
    told = {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 2}
    speaker = Scripted("b", Step(answer={**said, "usage": told}), speaks=("chat", "messages"))
    translated = Scripted("a", failing(500))
    engine, _ = an_engine(translated, speaker, retries=0)
    call = a_call("messages")
    call.native = native
    tally = Tally()
    asyncio.run(engine.complete(call, CHOICE, tally))
    assert (translated.orders[0].dialect, translated.orders[0].body) == ("chat", call.body)
    assert (speaker.orders[0].dialect, speaker.orders[0].body) == ("messages", native)
    assert (tally.dialect, tally.finish, tally.usage) == ("messages", "length", Usage(7, 2))


def test_overflow_goes_to_the_client_unless_a_larger_context_is_asked_for() -> None:
    overflow = failing(400, "context_length_exceeded")
    sizes = {"a": 100, "b": 100, "c": 200}
    for wanted, models in ((False, ["a"]), (True, ["a", "c"])):
        upstreams = {"a": Scripted("a", overflow), "b": Scripted("b"), "c": Scripted("c")}
        engine = Engine(upstreams, EngineSettings(larger_context=wanted), contexts=sizes)
        tally = Tally()
        if wanted:
            asyncio.run(engine.complete(a_call(), CHOICE, tally))
        else:
            with pytest.raises(ExpertError):
                asyncio.run(engine.complete(a_call(), CHOICE, tally))
        assert [attempt.model for attempt in tally.attempts] == models


def test_usage_is_estimated_and_marked_where_the_upstream_tells_none() -> None:
    engine, _ = an_engine(Scripted("a", Step(answer=answer("x" * 41, usage=None))))
    _, tally = run_complete(engine, Choice(model="a"))
    assert tally.usage == Usage(80 // 4 + 1, 11, True)
    assert tally.attempts[0].usage is tally.usage


@pytest.mark.parametrize("empty", [{"choices": []}, {"id": "x"}])
def test_a_whole_answer_without_a_choice_is_a_failure(empty: dict[str, Any]) -> None:
    engine, _ = an_engine(Scripted("a", Step(answer=empty)), Scripted("b"), retries=0)
    _, tally = run_complete(engine)
    assert tried(tally) == [("a", 502, "upstream_empty"), ("b", 200, "")]


def test_an_empty_stream_is_a_failure_and_falls_back() -> None:
    engine, _ = an_engine(Scripted("a", Step(events=[])), Scripted("b"), retries=0)
    tally = Tally()
    events = asyncio.run(gathered(engine, a_call(is_stream=True), CHOICE, tally))
    assert text_of(events) == TEXT
    assert tried(tally) == [("a", 502, "upstream_empty"), ("b", 200, "")]


def test_an_upstream_with_a_bug_is_a_failed_upstream(caplog: pytest.LogCaptureFixture) -> None:
    for is_stream in (False, True):
        broken = Scripted("a", Step(events=[], error=KeyError("oops")))
        engine, _ = an_engine(broken, Scripted("b"), retries=0)
        tally = Tally()
        call = a_call(is_stream=is_stream)
        if is_stream:
            asyncio.run(gathered(engine, call, CHOICE, tally))
        else:
            asyncio.run(engine.complete(call, CHOICE, tally))
        assert tried(tally) == [("a", 502, "upstream_failed"), ("b", 200, "")]
    assert "failed unexpectedly" in caplog.text


def test_only_harmless_headers_are_passed_on() -> None:
    upstream = Scripted("a")
    engine, _ = an_engine(upstream)
    call = a_call()
    call.headers = {
        b"authorization": b"Bearer client-key",
        b"cookie": b"c",
        b"traceparent": b"00-1",
        b"idempotency-key": b"k",
    }
    call.request_id = "req-1"
    asyncio.run(engine.complete(call, Choice(model="a"), Tally()))
    headers = dict(upstream.orders[0].headers)
    assert headers.keys() == {b"traceparent", b"idempotency-key", b"x-request-id"}
    assert headers[b"traceparent"] == b"00-1"


def test_the_request_id_that_is_passed_on_is_the_gateways_own() -> None:
    upstream = Scripted("a")
    call = a_call()
    call.headers, call.request_id = {b"x-request-id": b"not checked"}, "req-1"
    asyncio.run(an_engine(upstream)[0].complete(call, Choice(model="a"), Tally()))
    assert upstream.orders[0].headers == [(b"x-request-id", b"req-1")]
    quiet = Scripted("a")
    asyncio.run(an_engine(quiet, pass_headers=())[0].complete(call, Choice(model="a"), Tally()))
    assert quiet.orders[0].headers == []


def test_an_idempotency_key_is_another_for_every_model_and_the_same_for_a_retry() -> None:
    def sent(client: str, key: bytes) -> list[bytes]:
        first, second = Scripted("a", failing(500)), Scripted("b")
        engine, _ = an_engine(first, second, retries=1)
        call = a_call()
        call.headers, call.client = {b"idempotency-key": key}, Client(key_id=client)
        asyncio.run(engine.complete(call, CHOICE, Tally()))
        return [dict(order.headers)[b"idempotency-key"] for order in first.orders + second.orders]

    first, again, second = sent("me", b"k" * 300)
    assert first == again != second
    assert all(len(key) == 32 for key in (first, second))
    assert [first, first, second] == sent("me", b"k" * 300)
    assert {first, second}.isdisjoint(sent("you", b"k" * 300))
    assert {first, second}.isdisjoint(sent("me", b"l" * 300))


def test_a_model_whose_rest_is_over_waits_for_a_probe() -> None:
    engine, fake = an_engine(Scripted("a", failing(429, retry_after=30.0), Step()), Scripted("b"))
    run_complete(engine)
    told = engine.health()["a"]
    assert (told["state"], told["waits_for_probe"]) == ("open", False)
    fake.now += 40.0
    told = engine.health()["a"]
    assert (told["state"], told["waits_for_probe"], told["opens_for_s"]) == ("half_open", True, 0.0)


def test_failures_in_a_row_are_remembered_longer_than_the_window() -> None:
    engine, fake = an_engine(Scripted("a", failing(500), failing(500), Step()), retries=0)
    for _ in range(2):
        failure_of(engine, Choice(model="a"))
    fake.now += 100.0
    told = engine.health()["a"]
    assert (told["failure_share"], told["num_recent"], told["num_failed_in_row"]) == (0.0, 0, 2)
    run_complete(engine, Choice(model="a"))
    told = engine.health()["a"]
    assert (told["num_recent"], told["num_failed_in_row"]) == (1, 0)
