"""Every fault users file, through the whole gateway: what the client sees and what is recorded.

Each fault is asked for as JSON and as a stream, with a fallback (the answer is whole, and the
ledger says who was tried) and without (a typed error, and nothing that looks complete).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from crossroads.gateway.contracts import Record
from tests.gateway.chaos.asking import Reply, ask
from tests.gateway.chaos.configured import card, record_of, serving_config, write
from tests.gateway.fake_upstream import TEXT, FakeUpstream

# No model is left alone for longer than this, so that tests do not depend on each other.
BREAKER = {"open_s": 0.001, "open_max_s": 0.001, "least_calls": 10_000, "consecutive_failures": 10_000}
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


def _assert_fell_back(reply: Reply, row: Record, fault: str, tries: int) -> None:
    failed = f"{fault}-covered"
    assert [model for model, *_ in row.attempts] == [failed] * tries + ["backup"]
    assert all(status >= 400 and code for _, status, code, _ in row.attempts[:-1])
    assert row.attempts[-1][1] == 200
    assert reply.model == row.model == "backup"
    assert reply.headers["x-crossroads-fallbacks"] == "1"
    assert (row.status, row.is_complete, row.finish, row.error) == (200, True, "stop", "")
    assert row.cost_usd == pytest.approx(BACKUP_USD)


@pytest.mark.parametrize("fault", BEFORE_THE_ANSWER)
def test_a_fault_before_the_answer_without_fallback_is_a_typed_error(
    gate: Gate, fault: str
) -> None:
    _assert_refused(*gate.ask(fault, stream=False), *BEFORE_THE_ANSWER[fault])


@pytest.mark.parametrize("fault", BEFORE_THE_STREAM)
def test_a_fault_before_the_first_event_without_fallback_is_a_typed_error(
    gate: Gate, fault: str
) -> None:
    _assert_refused(*gate.ask(fault, stream=True), *BEFORE_THE_STREAM[fault])


def _assert_refused(reply: Reply, row: Record, status: int, code: str, tries: int) -> None:
    assert (reply.status, reply.error_code) == (status, code)
    assert not reply.is_event_stream
    assert (row.status, row.error, row.is_complete) == (status, code, False)
    assert len(row.attempts) == tries
    assert row.cost_usd == 0.0


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
