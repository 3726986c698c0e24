"""An upstream that is killed while clients ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gateway.chaos.asking import ask, asked
from tests.gateway.chaos.configured import card, records_of, until, write
from tests.gateway.chaos.processes import Load, Stub, check_text, gateway

pytestmark = pytest.mark.slow
FAST = {"backoff_s": 0.01, "breaker": {"open_s": 0.2, "open_max_s": 0.5}}


def mixed(number: int) -> dict[str, Any]:
    return asked("m", stream=bool(number % 2))


def check(folder: Path, load: Load) -> None:
    """Assert that nothing broken looked whole, to the client or in the ledger."""
    ids = [reply.decision_id for _, reply in load.replies]
    assert all(ids)  # the gateway itself answered every time
    rows = records_of(folder, ids)
    for _, reply in load.replies:
        check_text(reply)
        (row,) = rows[reply.decision_id]
        assert row.is_complete == reply.looks_whole
        assert reply.looks_whole or reply.error_code == row.error != ""


def test_an_upstream_killed_under_load_breaks_no_answer_unsaid_and_needs_no_restart(
    tmp_path: Path,
) -> None:
    with Stub("--gap", "0.003") as stub:
        path = write(tmp_path, [card("m", stub.url)], failures=FAST)
        with gateway(path) as served, Load(served.url, mixed) as load:
            load.go_on(60)
            stub.kill()
            load.go_on(60)
            is_down = ask(served.url, "m")
            stub.start()
            until(lambda: ask(served.url, "m", stream=True), lambda reply: reply.looks_whole)
            load.go_on(40)
            last = [reply for _, reply in load.replies[-10:]]
    check(tmp_path, load)
    assert (is_down.status, is_down.error_code) == (503, "upstream_unavailable")
    assert all(reply.looks_whole for reply in last)
    broken = [reply for _, reply in load.replies if not reply.looks_whole]
    assert any(reply.is_event_stream and reply.status == 200 for reply in broken)  # in mid-stream


def test_an_upstream_killed_under_load_is_covered_by_its_fallback(tmp_path: Path) -> None:
    with Stub("--gap", "0.003") as stub, Stub() as backup:
        models = [card("m", stub.url), card("backup", backup.url)]
        path = write(tmp_path, models, fallbacks={"m": ["backup"]}, failures=FAST)
        with gateway(path) as served, Load(served.url, mixed) as load:
            load.go_on(60)
            stub.kill()
            load.go_on(100)
            stub.start()
            until(lambda: ask(served.url, "m").model, "m".__eq__)
            load.go_on(40)
    check(tmp_path, load)
    broken = [reply for _, reply in load.replies if not reply.looks_whole]
    # Only streams that had begun, which nobody here continues by prefill.
    assert all(reply.is_event_stream and reply.status == 200 for reply in broken)
    assert {reply.model for reply in load.whole} == {"m", "backup"}
