from __future__ import annotations

import io
import json
import logging
import os
import sys
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import InputError
from crossroads.gateway.call import Call
from crossroads.gateway.contracts import Record
from crossroads.gateway.telemetry import GatewayTelemetry, LogSettings, TelemetrySettings
from crossroads.gateway.telemetry.logs import Logs
from tests.gateway.telemetry.records import record

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
SECRETS = st.text(ALPHABET, min_size=12, max_size=60)


def line(item: Record | logging.LogRecord, **options: object) -> dict[str, object]:
    parsed = orjson.loads(Logs(LogSettings(**options)).line(item))  # type: ignore[arg-type]
    assert isinstance(parsed, dict)
    return parsed


def test_a_call_is_one_line_of_json_with_its_decision_and_phases() -> None:
    found = line(record())
    assert found["event"] == "call" and found["level"] == "info"
    assert found["model"] == "a" and found["policy"] == "auto" and found["upstream_ms"] == 500.0
    assert found["time"] == "2026-09-21T14:13:20.000+00:00"


def test_a_failed_call_says_so_in_its_level() -> None:
    assert line(record(status=502))["level"] == "error"
    assert line(record(status=404))["level"] == "warning"
    assert line(record(is_complete=False))["level"] == "warning"


def test_one_bad_record_takes_no_line_of_its_batch_with_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    logs = Logs(LogSettings(file=str(path)))
    logs.put(record(decision_id="dec_first"))
    logs.outbox.put(logging.LogRecord("x", 40, "f", 1, "bad %d", ("a",), None))
    logs.put(record(asked="\ud800", labels={"big": 2**70}))
    logs.outbox.put(record(time="no time"))  # cannot be written at all
    logs.put(record(decision_id="dec_last"))
    logs.outbox.flush()
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [found.get("decision_id") for found in lines if found["event"] == "call"] == [
        *("dec_first", "dec_1", "dec_last")
    ]
    assert "bad %d (its arguments do not fit)" in [found.get("message") for found in lines]
    assert (logs.outbox.num_dropped, logs.outbox.error) == (1, None)


def test_a_newline_in_a_name_stays_in_its_line() -> None:
    text = Logs(LogSettings()).line(record(asked='x\n{"event": "forged"}'))
    assert text.count(b"\n") == 1


@settings(deadline=None, max_examples=100)
@given(SECRETS, SECRETS, st.sampled_from(["authorization", "x-api-key", "cookie", "x-mine"]))
def test_no_key_of_a_header_or_a_body_is_ever_logged(secret: str, other: str, header: str) -> None:
    telemetry = GatewayTelemetry(TelemetrySettings(), secrets=[secret])
    call = Call(
        dialect="chat",
        model="auto",
        body={"messages": [{"role": "user", "content": f"my key is {other}"}]},
        headers={header.encode(): f"Bearer {secret}".encode(), b"x-api-key": other.encode()},
    )
    telemetry.begin(call)
    failure = f"upstream said: key {secret} refused; Authorization: Bearer {other}"
    telemetry.end(
        record(prompt=call.text, answer=f"It is {other}", error=failure, reason=f"api_key={other}")
    )
    assert telemetry.logs is not None
    logged = b"".join(map(telemetry.logs.line, telemetry.logs.outbox._items)).decode()
    assert '"event":"call"' in logged
    assert secret not in logged and other not in logged


@settings(deadline=None, max_examples=100)
@given(SECRETS)
def test_what_looks_like_a_key_is_blotted_out_of_messages_and_tracebacks(secret: str) -> None:
    try:
        raise ValueError(f"https://user:{secret}@host/ and sk-{secret}")
    except ValueError:
        item = logging.LogRecord(
            "crossroads.x", 40, __file__, 1, "password=%s", (secret,), sys.exc_info()
        )
    text = json.dumps(line(item))
    assert "ValueError" in text
    assert secret not in text


def test_level_and_sample_choose_what_is_logged_but_failures_always_are() -> None:
    def logged(item: Record, **options: object) -> int:
        logs = Logs(LogSettings(**options))  # type: ignore[arg-type]
        logs.put(item)
        return len(logs.outbox)

    assert logged(record()) == 1
    assert logged(record(), level="warning") == 0
    assert logged(record(status=429), level="warning") == 1
    assert logged(record(status=429), level="error") == 0
    assert logged(record(status=500), level="error") == 1
    assert logged(record(), sample=0.0) == 0
    assert logged(record(status=500), sample=0.0) == 1


def test_lines_reach_the_file_in_order_and_also_after_it_was_rotated(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "calls.jsonl"
    logs = Logs(LogSettings(file=str(path)))
    for i in range(5):
        logs.put(record(request_id=f"req_{i}"))
    logs.outbox.flush()
    path.rename(path.with_suffix(".1"))
    logs.put(record(request_id="req_5"))
    logs.outbox.close()
    first = [
        orjson.loads(text)["request_id"]
        for text in path.with_suffix(".1").read_bytes().splitlines()
    ]
    assert first == [f"req_{i}" for i in range(5)]
    assert orjson.loads(path.read_bytes())["request_id"] == "req_5"


def test_a_full_queue_drops_lines_and_counts_them() -> None:
    logs = Logs(LogSettings(queue=100))
    for _ in range(150):
        logs.put(record())
    assert len(logs.outbox) == 100 and logs.outbox.num_dropped == 50


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")  # noqa: PTH110
def test_a_full_disk_is_told_in_the_health_and_ends_nothing(tmp_path: Path) -> None:
    telemetry = GatewayTelemetry(TelemetrySettings(logs=LogSettings(file="/dev/full")))
    telemetry.end(record())
    assert telemetry.logs is not None
    telemetry.logs.outbox.flush()
    health = telemetry.health()
    assert health["status"] == "degraded" and "No space" in health["reason"]
    assert health["logs_dropped"] == 1


def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"telemetry\.logs\.file: .* cannot be written"):
        Logs(LogSettings(file=str(tmp_path)))


def test_without_a_file_lines_go_to_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stderr", taken)
    logs = Logs(LogSettings())
    logs.put(record())
    logs.outbox.flush()
    assert b'"event":"call"' in taken.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["crossroads.test_logs", "opentelemetry.exporter", "asyncio"])
def test_our_own_loggers_and_those_of_our_libraries_write_the_same_kind_of_line(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "calls.jsonl"
    logs = Logs(LogSettings(level="warning", file=str(path)))
    logs.start()
    logger = logging.getLogger(name)
    logger.warning("disk %s is full", "b")
    logger.info("not this one")
    logs.close()
    logger.warning("nor this one")
    (written,) = path.read_bytes().splitlines()
    assert orjson.loads(written)["message"] == "disk b is full"


def test_a_clients_request_id_is_cleaned_whatever_it_looks_like() -> None:
    secret = "0123456789abcdef0123456789abcdef"
    logs = Logs(LogSettings(), secrets=[secret])
    for theirs in (f"req_{secret}", "sk-live-abcdefgh", "token=abcdefgh"):
        written = logs.line(record(request_id=theirs))
        assert theirs.encode() not in written
        assert b"[redacted]" in written
    ours = "req_" + 8 * "a1b2"
    assert ours.encode() in logs.line(record(request_id=ours))
