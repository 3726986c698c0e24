"""Workers that are killed, reloaded and stopped while clients ask."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from crossroads.gateway.workers import can_share_ports
from tests.gateway.chaos.asking import DONE, Reply, ask, ask_all, asked
from tests.gateway.chaos.configured import (
    card,
    fit_small_router,
    record_of,
    records,
    records_of,
    until,
    write,
)
from tests.gateway.chaos.processes import Load, Stub, check_text, gateway, kill

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_share_ports(), reason="needs SO_REUSEPORT"),
]
FLUSH_S = 0.2
SLACK_S = 0.3  # of a busy machine: to commit, and to notice here that an answer is over
NAMES = ("alpha", "beta", "gamma")


def mixed(number: int) -> dict[str, Any]:
    return asked("m", stream=bool(number % 2))


def test_a_worker_killed_under_load_comes_back_and_only_rows_of_the_last_moment_are_lost(
    tmp_path: Path,
) -> None:
    with Stub("--delay", "0.01") as stub:
        ledger = {"url": f"sqlite:{tmp_path / 'ledger.db'}", "flush_ms": int(1000 * FLUSH_S)}
        path = write(tmp_path, [card("m", stub.url)], ledger=ledger)
        with gateway(path, workers=2) as served, Load(served.url, mixed) as load:
            before = served.workers()
            load.go_on(100)
            killed_at = time.time()
            kill(min(before))
            load.go_on(50)
            both = until(served.workers, lambda seen: len(seen) == 2 and seen != before)
            time.sleep(3 * SLACK_S)
            load.go_on(50)
            still = served.workers()
        late = [reply for at, reply in load.replies if at > killed_at + 2 * SLACK_S]
    assert len(before & both) == 1
    assert still == both
    assert late
    assert all(reply.looks_whole for reply in late)
    for _, reply in load.replies:
        check_text(reply)
        assert reply.looks_whole or reply.is_cut  # nobody is told an error
    rows = Counter(row.decision_id for row in records(tmp_path))
    assert set(rows.values()) == {1}
    lost = [at for at, reply in load.replies if reply.looks_whole and reply.decision_id not in rows]
    assert all(killed_at - FLUSH_S - SLACK_S < at < killed_at + SLACK_S for at in lost)


def test_64_clients_over_two_workers_get_the_same_decision_for_the_same_input(
    tmp_path: Path,
) -> None:
    router = fit_small_router(tmp_path, NAMES)
    explore = {"epsilon": 0.2, "margin": 1.0}
    policies = {
        "plain": {"kind": "learned", "router": router, "seed": 7},
        "split": {"kind": "split", "weights": dict.fromkeys(NAMES, 1), "seed": 7},
        "curious": {"kind": "learned", "router": router, "seed": 7, "explore": explore},
    }
    texts = [f"{word} number {n}" for n in range(8) for word in ("sum", "poem", "code", "tea")]
    with Stub() as stub:
        path = write(tmp_path, [card(name, stub.url) for name in NAMES], policies=policies)
        with gateway(path, workers=2) as served:

            def decide(policy: str) -> list[tuple[str, ...]]:
                bodies = [
                    asked(policy, messages=[{"role": "user", "content": text}], user=text)
                    for text in texts
                ]
                return [_decision(reply) for reply in ask_all(served.url, bodies * 2)]

            plain = [decide("plain") for _ in range(3)]
            split = [decide("split") for _ in range(3)]
            replies = ask_all(served.url, [asked("curious")] * 64)
    for found in (*plain, *split):
        assert found[:32] == found[32:]
    assert plain[0] == plain[1] == plain[2]
    assert split[0] == split[1] == split[2]
    assert {model for model, *_ in split[0]} == set(NAMES)
    # With chance in it, the draw belongs to the decision's id: every propensity is what it says.
    rows = records_of(tmp_path, [reply.decision_id for reply in replies])
    for reply in replies:
        (row,) = rows[reply.decision_id]
        assert row.propensity == pytest.approx(row.probabilities[row.chosen])
    assert len({tuple(sorted(row.probabilities.items())) for (row,) in rows.values()}) == 1


def _decision(reply: Reply) -> tuple[str, ...]:
    assert reply.looks_whole
    names = ("model", "reason", "policy", "confidence", "predicted-quality")
    return tuple(reply.headers.get(f"x-crossroads-{name}", "") for name in names)


def test_a_reload_by_signal_under_load_loses_no_request(tmp_path: Path) -> None:
    with Stub("--delay", "0.005") as stub:

        def configure(model: str) -> Path:
            policies = {"auto": {"kind": "split", "weights": {model: 1}}}
            return write(tmp_path, [card("a", stub.url), card("b", stub.url)], policies=policies)

        def body(number: int) -> dict[str, Any]:
            return asked("auto", stream=bool(number % 2))

        with gateway(configure("a"), workers=2) as served, Load(served.url, body) as load:
            load.go_on(20)
            for turn in range(1, 7):
                model = "ab"[turn % 2]
                configure(model)
                served.signal(signal.SIGHUP)
                until(lambda: {ask(served.url).model for _ in range(6)}, {model}.__eq__)
            assert len(served.workers()) == 2
    assert all(reply.looks_whole for _, reply in load.replies)
    assert {reply.model for reply in load.whole} == {"a", "b"}
    rows = records_of(tmp_path, [reply.decision_id for reply in load.whole])
    assert all(len(found) == 1 and found[0].is_complete for found in rows.values())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_by_signal_finishes_a_stream_and_answers_nobody_new(
    tmp_path: Path, workers: int
) -> None:
    with Stub("--gap", "0.05") as stub:
        path = write(tmp_path, [card("m", stub.url)], timeouts={"drain": 10})
        with gateway(path, workers=workers) as served:
            connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=15)
            connection.request("POST", "/v1/chat/completions", json.dumps(mixed(1)))
            response = connection.getresponse()
            first = response.readline()
            ended: list[int] = []
            stopping = threading.Thread(target=lambda: ended.append(served.stop()))
            stopping.start()
            time.sleep(0.3)
            with pytest.raises(OSError):
                ask(served.url, "m")
            rest = response.read()
            decision_id = response.headers["x-crossroads-decision-id"]
            connection.close()
            stopping.join()
    assert ended == [0]
    assert (first + rest).endswith(DONE)
    assert (first + rest).count(b"data: ") == 23
    assert record_of(tmp_path, decision_id).is_complete
