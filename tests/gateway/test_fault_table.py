"""Every fault users file, through the whole gateway: what the client sees and what is recorded.

Each fault is asked for as JSON and as a stream, with a fallback (the answer is whole, and the
ledger says who was tried) and without (a typed error, and nothing that looks complete).
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from crossroads.gateway.contracts import Record
from tests.gateway.chaos.asking import (
    CHAT,
    Reply,
    ask,
    ask_all,
    ask_async,
    asked,
    leave,
    new_session,
    send,
)
from tests.gateway.chaos.configured import (
    KEY,
    card,
    record_of,
    records,
    runtime_of,
    serving_config,
    until,
    write,
)
from tests.gateway.chaos.raw_upstream import RawUpstream, answer_of, plain, stream_of
from tests.gateway.fake_upstream import TEXT, FakeUpstream
from tests.gateway.redis_server import redis_server
from tests.gateway.serving import serving_runtime

# No model is left alone for longer than this, so that tests do not depend on each other.
BREAKER = {
    "open_s": 0.001,
    "open_max_s": 0.001,
    "least_calls": 10_000,
    "consecutive_failures": 10_000,
}
BACKUP_USD = (7 * 1.0 + 5 * 2.0) / 1e6  # the tokens and prices of the model that stands by
BEFORE = {  # fault: what a client without a fallback is told, and tries of the model
    "status-429": (429, "some_code", 1),  # its Retry-After is longer than we wait
    "status-500": (502, "upstream_error", 2),
    "status-503": (503, "some_code", 1),
    "slow-1": (504, "upstream_timeout", 2),
    "hangup": (503, "upstream_unavailable", 2),
    "html": (502, "upstream_invalid", 2),
}
BEFORE_THE_ANSWER = {**BEFORE, "error": (502, "some_code", 2), "cut": (502, "upstream_cut", 2)}
BEFORE_THE_STREAM = {
    **BEFORE,
    "cut-0": (502, "upstream_cut", 2),
    "stall-0": (504, "upstream_timeout", 2),
    "malformed-0": (502, "upstream_invalid", 2),
    "empty": (502, "upstream_empty", 2),
    "onlydone": (502, "upstream_empty", 2),
}
WITHIN_THE_STREAM = {
    "cut-5": "upstream_cut",
    "stall-5": "upstream_timeout",
    "malformed-5": "upstream_invalid",
    "nofinish": "upstream_cut",
}
WHOLE = ("nodone", "notlast", "lingers")  # unusual, and whole
UNBILLED = ("status-429", "status-500", "status-503", "hangup", "error")  # nobody worked
FAULTS = sorted({*BEFORE_THE_ANSWER, *BEFORE_THE_STREAM, *WITHIN_THE_STREAM, *WHOLE})


@dataclass(frozen=True)
class Gate:
    """A running gateway. A model ``X`` fails alone, ``X-covered`` has a fallback."""

    url: str
    folder: Path

    def ask(self, model: str, *, stream: bool) -> tuple[Reply, Record]:
        reply = ask(self.url, model, stream=stream)
        return reply, record_of(self.folder, reply.decision_id)


@pytest.fixture(scope="module")
def gate(upstream: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    folder = tmp_path_factory.mktemp("gate")
    models = [card("backup", upstream.url, "usage", prefill=True)]
    for fault in FAULTS:
        models += [card(name, upstream.url, fault) for name in (fault, f"{fault}-covered")]
    path = write(
        folder,
        models,
        fallbacks={f"{fault}-covered": ["backup"] for fault in FAULTS},
        failures={"backoff_s": 0.01, "breaker": BREAKER},
        timeouts={"connect": 0.5, "first_byte": 0.3, "idle": 0.3, "total": 3.0},
    )
    with serving_config(path) as url:
        yield Gate(url, folder)


@pytest.mark.parametrize("fault", BEFORE_THE_ANSWER)
def test_a_fault_before_the_answer_is_retried_then_falls_back(gate: Gate, fault: str) -> None:
    reply, row = gate.ask(f"{fault}-covered", stream=False)
    assert reply.looks_whole
    assert reply.text == TEXT
    _assert_fell_back(reply, row, fault, BEFORE_THE_ANSWER[fault][2])


@pytest.mark.parametrize("fault", BEFORE_THE_STREAM)
def test_a_fault_before_the_first_event_is_retried_then_falls_back(gate: Gate, fault: str) -> None:
    reply, row = gate.ask(f"{fault}-covered", stream=True)
    assert reply.looks_whole
    assert reply.text == TEXT
    _assert_fell_back(reply, row, fault, BEFORE_THE_STREAM[fault][2])


def _lost_usd(fault: str, row: Record) -> float:
    """What failed tries cost: a prompt that was read is billed, by the estimate of its size."""
    failed = row.attempts[0][0]
    size = len(json.dumps(asked(failed, stream=row.is_stream)))
    num_read = 0 if fault in UNBILLED else sum(model == failed for model, *_ in row.attempts)
    return num_read * (size // 4 + 1) / 1e6


def _assert_fell_back(reply: Reply, row: Record, fault: str, tries: int) -> None:
    failed = f"{fault}-covered"
    assert [model for model, *_ in row.attempts] == [failed] * tries + ["backup"]
    assert all(status >= 400 and code for _, status, code, _ in row.attempts[:-1])
    assert row.attempts[-1][1] == 200
    assert reply.model == row.model == "backup"
    assert reply.headers["x-crossroads-fallbacks"] == "1"
    assert (row.status, row.is_complete, row.finish, row.error) == (200, True, "stop", "")
    assert row.cost_usd == pytest.approx(BACKUP_USD + _lost_usd(fault, row))


@pytest.mark.parametrize("fault", BEFORE_THE_ANSWER)
def test_a_fault_before_the_answer_without_fallback_is_a_typed_error(
    gate: Gate, fault: str
) -> None:
    reply, row = gate.ask(fault, stream=False)
    _assert_refused(reply, row, fault, BEFORE_THE_ANSWER[fault])


@pytest.mark.parametrize("fault", BEFORE_THE_STREAM)
def test_a_fault_before_the_first_event_without_fallback_is_a_typed_error(
    gate: Gate, fault: str
) -> None:
    reply, row = gate.ask(fault, stream=True)
    _assert_refused(reply, row, fault, BEFORE_THE_STREAM[fault])


def _assert_refused(reply: Reply, row: Record, fault: str, told: tuple[int, str, int]) -> None:
    status, code, tries = told
    assert (reply.status, reply.error_code) == (status, code)
    assert not reply.is_event_stream
    assert (row.status, row.error, row.is_complete) == (status, code, False)
    assert len(row.attempts) == tries
    assert row.cost_usd == pytest.approx(_lost_usd(fault, row))


@pytest.mark.parametrize("fault", WITHIN_THE_STREAM)
def test_a_fault_within_a_stream_is_continued_by_the_fallback(gate: Gate, fault: str) -> None:
    reply, row = gate.ask(f"{fault}-covered", stream=True)
    assert reply.looks_whole
    assert reply.text == TEXT
    assert [(model, status) for model, status, *_ in row.attempts] == [
        (f"{fault}-covered", row.attempts[0][1]),
        ("backup", 200),
    ]
    assert row.attempts[0][2] == WITHIN_THE_STREAM[fault]
    assert (row.status, row.is_complete, row.finish, row.error) == (200, True, "stop", "")
    assert row.cost_usd > BACKUP_USD  # and what the broken part produced


@pytest.mark.parametrize("fault", WITHIN_THE_STREAM)
def test_a_fault_within_a_stream_without_fallback_is_an_error_event_and_no_done(
    gate: Gate, fault: str
) -> None:
    reply, row = gate.ask(fault, stream=True)
    assert (reply.status, reply.error_code) == (200, WITHIN_THE_STREAM[fault])
    assert b"[DONE]" not in reply.body
    assert TEXT.startswith(reply.text)
    assert (row.error, row.is_complete) == (WITHIN_THE_STREAM[fault], False)
    assert row.output_tokens > 0
    assert row.is_usage_estimated
    assert row.cost_usd == pytest.approx((row.input_tokens + 2 * row.output_tokens) / 1e6)


@pytest.mark.parametrize("behaviour", WHOLE)
def test_a_stream_that_finished_without_a_proper_done_is_whole(gate: Gate, behaviour: str) -> None:
    reply, row = gate.ask(behaviour, stream=True)
    assert reply.looks_whole
    assert reply.text == TEXT
    assert row.is_complete
    assert len(row.attempts) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_fault_that_passes_is_retried_at_the_same_model_and_billed_once(
    tmp_path: Path, status: int, stream: bool
) -> None:
    def script(body: dict[str, Any], number: int) -> bytes:
        if number == 1:
            return plain(status, {"error": {"message": "later"}}, "retry-after: 0")
        return stream_of(["fi", "ne"]) if body.get("stream") else answer_of("fine")

    with RawUpstream(script) as upstream:
        path = write(tmp_path, [card("m", upstream.url)], failures={"backoff_s": 0.01})
        with serving_config(path) as url:
            reply = ask(url, "m", stream=stream)
            row = record_of(tmp_path, reply.decision_id)
    assert reply.looks_whole
    assert reply.text == "fine"
    tried = 502 if status == 500 else status  # the defect is not the gateway's own
    assert [status for _, status, *_ in row.attempts] == [tried, 200]
    assert row.cost_usd == pytest.approx(BACKUP_USD)
    assert len(upstream.bodies) == 2


@pytest.mark.parametrize("fallback", [False, True])
def test_a_stream_that_is_refused_with_200_and_a_json_error_is_a_failure(
    tmp_path: Path, fallback: bool
) -> None:
    def script(body: dict[str, Any], number: int) -> bytes:
        if body["model"] == "bad":
            return plain(200, {"error": {"message": "no", "code": "odd", "type": "odd_error"}})
        return stream_of(["fi", "ne"])

    with RawUpstream(script) as upstream:
        models = [card("bad", upstream.url), card("good", upstream.url)]
        chains = {"bad": ["good"]} if fallback else {}
        path = write(tmp_path, models, fallbacks=chains, failures={"backoff_s": 0.01})
        with serving_config(path) as url:
            reply = ask(url, "bad", stream=True)
            row = record_of(tmp_path, reply.decision_id)
    assert reply.looks_whole == row.is_complete == fallback
    assert reply.status == row.status == (200 if fallback else 502)
    assert reply.error_code == row.error == ("" if fallback else "odd")


def test_a_continuation_asks_the_fallback_with_what_the_client_already_has(tmp_path: Path) -> None:
    whole = "the quick brown fox jumps"

    def script(body: dict[str, Any], number: int) -> bytes:
        if body["model"] == "first":  # ends within the third event
            return stream_of([whole[:9], whole[9:15], whole[15:]])[:-700]
        given = body["messages"][-1]
        assert given["role"] == "assistant"
        return stream_of([whole[len(given["content"]) :]])

    with RawUpstream(script) as upstream:
        models = [card("first", upstream.url), card("second", upstream.url, prefill=True)]
        path = write(tmp_path, models, fallbacks={"first": ["second"]})
        with serving_config(path) as url:
            reply = ask(url, "first", stream=True)
            row = record_of(tmp_path, reply.decision_id)
    assert reply.looks_whole
    assert reply.text == whole
    assert upstream.bodies[1]["messages"][-1]["content"] == "the quick"
    assert len({event["id"] for event in reply.events}) == 1
    assert [(model, code) for model, _, code, _ in row.attempts] == [
        ("first", "upstream_cut"),
        ("second", ""),
    ]


def test_a_slow_client_gets_all_of_a_long_stream_and_is_billed_once(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async def read_slowly(url: str) -> tuple[int, Reply]:
        async with new_session() as session:
            body = asked("m", stream=True)
            async with session.post(f"{url}{CHAT}", json=body) as response:
                await asyncio.sleep(0.3)
                sent = upstream.num_sent
                headers = {name.lower(): value for name, value in response.headers.items()}
                return sent, Reply(response.status, headers, await response.read())

    path = write(tmp_path, [card("m", upstream.url, "long-2000")])
    with serving_config(path) as url:
        upstream.num_sent = 0
        sent, reply = asyncio.run(read_slowly(url))
        row = record_of(tmp_path, reply.decision_id)
    assert 0 < sent < 2000  # the rest of 20 MB waited for the reader
    assert reply.looks_whole
    assert len(reply.text) == 20_000_000
    assert row.is_complete
    assert len(records(tmp_path)) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_call_upstream_and_pays_for_what_was_produced(
    tmp_path: Path, stream: bool
) -> None:
    behaviour = "trickle-5" if stream else "slow-30"
    with FakeUpstream() as upstream:
        models = [card("m", upstream.url, behaviour), card("backup", upstream.url, "ok")]
        path = write(tmp_path, models, fallbacks={"m": ["backup"]})
        with serving_config(path) as url:
            leave(url, "m", stream=stream, is_asked=lambda: bool(upstream.requests))
            assert upstream.abandoned.wait(5)
            (row,) = until(lambda: records(tmp_path))
    assert (row.status, row.error, row.is_complete) == (499, "client_gone", False)
    assert [(model, code) for model, _, code, _ in row.attempts] == [("m", "cancelled")]
    assert row.is_usage_estimated
    assert row.input_tokens > 0
    assert (row.output_tokens > 0) == stream
    assert row.cost_usd == pytest.approx((row.input_tokens + 2 * row.output_tokens) / 1e6)
    assert len(upstream.requests) == 1  # no fallback for nobody


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_sent_again_with_its_idempotency_key_is_billed_once(
    tmp_path: Path, stream: bool
) -> None:
    budget = {"usd": 1.0, "per": "day"}
    with FakeUpstream() as upstream:
        path = write(
            tmp_path,
            [card("m", upstream.url, "usage")],
            governance={"keys": [{"name": "a", "secret": KEY, "budgets": [budget]}]},
        )
        runtime = runtime_of(path)
        headers = {"authorization": f"Bearer {KEY}", "idempotency-key": "order-7"}

        async def ask_together(url: str) -> list[Reply]:
            async with new_session() as session:
                body = asked("m", stream=stream)
                return await asyncio.gather(
                    *(ask_async(session, url, body, **headers) for _ in range(8))
                )

        with serving_runtime(runtime) as url:
            replies = asyncio.run(ask_together(url))
            replies.append(send(url, "POST", CHAT, asked("m", stream=stream), headers=headers))
            row = record_of(tmp_path, replies[0].decision_id)
            spent = runtime.built.governor.describe()["keys"][0]["budgets"][0]["spent_usd"]
    assert len({reply.body for reply in replies}) == 1
    assert all(reply.looks_whole for reply in replies)
    assert len(upstream.requests) == 1
    assert len(records(tmp_path)) == 1
    assert row.cost_usd == pytest.approx(spent) == pytest.approx(BACKUP_USD)


def test_a_failed_request_sent_again_runs_anew_and_only_the_answer_is_billed(
    tmp_path: Path,
) -> None:
    def script(body: dict[str, Any], number: int) -> bytes:
        return plain(500, {"error": {"message": "no"}}) if number == 1 else answer_of("fine")

    headers = {"idempotency-key": "order-8"}
    with RawUpstream(script) as upstream:
        path = write(tmp_path, [card("m", upstream.url)], failures={"retries": 0})
        with serving_config(path) as url:
            first, again = (send(url, "POST", CHAT, asked("m"), headers=headers) for _ in range(2))
            rows = [record_of(tmp_path, reply.decision_id) for reply in (first, again)]
    assert [reply.status for reply in (first, again)] == [502, 200]
    assert [row.cost_usd for row in rows] == [0.0, pytest.approx(BACKUP_USD)]


# --- what the gateway keeps its counts in ---------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_100_parallel_requests_over_several_workers_spend_a_budget_of_10_and_no_more(
    tmp_path: Path, upstream: FakeUpstream, stream: bool
) -> None:
    """Workers of one process each here; those of ``--workers 4`` are under ``chaos``."""
    key = {"name": "a", "secret": KEY, "budgets": [{"usd": 10.0, "per": "30d"}]}
    one_usd_a_call = {"price_in": 0.0, "price_out": 0.0, "price_per_call": 1.0}
    path = write(
        tmp_path,
        [{**card("m", upstream.url, "usage"), **one_usd_a_call}],
        governance={"keys": [key], "store": f"sqlite:{tmp_path / 'limits.db'}"},
    )
    with ExitStack() as stack:
        urls = [stack.enter_context(serving_config(path)) for _ in range(3)]

        async def race() -> list[Reply]:
            async with new_session() as session:
                body = asked("m", stream=stream)
                calls = (ask_async(session, urls[n % 3], body, key=KEY) for n in range(100))
                return await asyncio.gather(*calls)

        replies = asyncio.run(race())
        rows = until(lambda: records(tmp_path), lambda rows: len(rows) == 100)
    statuses = Counter(reply.status for reply in replies)
    assert statuses.keys() == {200, 429}
    assert 7 <= statuses[200] <= 10  # a worker may hold a unit for others; never more than 10
    refused = {reply.error_code for reply in replies if reply.status == 429}
    assert refused == {"insufficient_quota"}
    assert sum(row.cost_usd for row in rows) == pytest.approx(statuses[200])
    assert sum(row.is_complete for row in rows) == statuses[200]


def test_a_configuration_reloaded_under_load_loses_and_breaks_no_request(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    models = [card("ok", upstream.url), card("usage", upstream.url)]

    def configure(model: str) -> Path:
        policies = {"auto": {"kind": "split", "weights": {model: 1}}}
        return write(tmp_path, models, policies=policies, watch_s=0.02)

    path = configure("ok")
    replies: list[Reply] = []
    with serving_config(path) as url:

        def load() -> None:
            bodies = [asked("auto", stream=bool(n % 2)) for n in range(10)]
            for _ in range(15):
                replies.extend(ask_all(url, bodies))

        thread = threading.Thread(target=load)
        thread.start()
        turn = 0
        while thread.is_alive():
            turn += 1
            configure("usage" if turn % 2 else "ok")
            time.sleep(0.1)
        thread.join()
    assert len(replies) == 150
    assert all(reply.looks_whole and reply.text == TEXT for reply in replies)
    assert {reply.model for reply in replies} == {"ok", "usage"}  # it was reloaded meanwhile
    rows = records(tmp_path)
    assert {row.decision_id for row in rows} == {reply.decision_id for reply in replies}
    assert all(row.is_complete and row.model == row.chosen for row in rows)
    assert len({row.version for row in rows}) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("manner", ["open", "closed"])
def test_without_redis_calls_are_served_or_refused_as_the_policy_says(
    tmp_path: Path, upstream: FakeUpstream, manner: str, stream: bool
) -> None:
    key = {"name": "a", "secret": KEY, "limits": {"requests_per_day": 64}}
    with redis_server(durable=False) as redis:
        governance = {"keys": [key], "store": redis.url, "on_store_failure": manner}
        path = write(tmp_path, [card("m", upstream.url, "usage")], governance=governance)
        with serving_config(path) as url:
            assert ask(url, "m", key=KEY, stream=stream).looks_whole
            redis.kill()
            replies = ask_all(url, [asked("m", stream=stream)] * 40, key=KEY)
            health = until(lambda: _health(url), lambda found: found["status"] != "ok")
            redis.start()
            until(lambda: _health(url), lambda found: found["status"] == "ok")
            until(lambda: ask(url, "m", key=KEY, stream=stream), lambda reply: reply.looks_whole)
            rows = until(lambda: records(tmp_path), lambda rows: len(rows) >= 42)
    statuses = Counter(reply.status for reply in replies)
    if manner == "open":
        assert statuses == {200: 40}
        assert health["parts"]["governance"] == "degraded"
    else:
        assert statuses.keys() == {200, 503}  # what was on lease was served
        refused = {reply.error_code for reply in replies if reply.status == 503}
        assert refused == {"store_unavailable"}
        assert health["parts"]["governance"] == "failing"
    assert all(row.is_complete == (row.status == 200) == (row.cost_usd > 0) for row in rows)


def _health(url: str) -> Any:
    return send(url, "GET", "/health/ready").json


@pytest.mark.parametrize("jump_s", [86_400.0, -86_400.0])
def test_a_jump_of_the_clock_neither_opens_nor_locks_a_limit(
    tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    keys = [
        {"name": "spent", "secret": KEY, "limits": {"requests_per_day": 3}},
        {"name": "fresh", "secret": KEY[::-1], "limits": {"requests_per_day": 3}},
    ]
    path = write(tmp_path, [card("m", upstream.url, "usage")], governance={"keys": keys})
    with serving_config(path) as url:
        before = [ask(url, "m", key=KEY).status for _ in range(4)]
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + jump_s)
        spent = ask(url, "m", key=KEY)
        fresh = [ask(url, "m", key=KEY[::-1], stream=bool(n % 2)) for n in range(4)]
        rows = until(lambda: records(tmp_path), lambda rows: len(rows) == 9)
    assert before == [200, 200, 200, 429]
    assert spent.status == 429
    assert 0 < float(spent.headers["retry-after"]) <= 86_400 / 3
    assert [reply.status for reply in fresh] == [200, 200, 200, 429]
    assert all(reply.looks_whole for reply in fresh[:3])
    assert all(row.total_ms >= 0 and row.upstream_ms >= 0 for row in rows)
