"""A gateway as its configuration describes it, over real sockets."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from crossroads.core.errors import CrossroadsError, InputError
from crossroads.gateway import runtime as runtime_module
from crossroads.gateway.app import Gateway
from crossroads.gateway.build import Built
from crossroads.gateway.checking import Finding
from crossroads.gateway.config import read_config
from crossroads.gateway.exchange import Exchange
from crossroads.gateway.governance import KeyFile
from crossroads.gateway.ledger import LedgerSettings, open_ledger
from crossroads.gateway.policies import CompiledPolicies
from crossroads.gateway.runtime import Runtime
from tests.gateway.configured import HELLO, KEYS, ask, call, decision, runtime_of, until, write
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.ledger.records import record
from tests.gateway.serving import serving_runtime


@pytest.fixture
def path(tmp_path: Path, upstream: FakeUpstream) -> Path:
    return write(tmp_path, upstream)


@pytest.fixture
def url(path: Path) -> Iterator[str]:
    with serving_runtime(runtime_of(path)) as running:
        yield running


def test_a_call_leaves_a_record_that_its_own_key_can_read(url: str) -> None:
    _, headers, _ = ask(url)
    decision_id = headers["x-crossroads-decision-id"]
    row = until(lambda: decision(url, decision_id))
    assert (row["key_id"], row["policy"], row["model"]) == ("mine", "auto", "ok")
    assert (row["input_tokens"], row["output_tokens"]) == (7, 5)
    assert row["cost_usd"] == pytest.approx((7 * 1.0 + 5 * 2.0) / 1e6)
    assert row["is_complete"]
    assert row["prompt"] == "hello there"
    phases = ("queue_ms", "route_ms", "connect_ms", "upstream_ms", "relay_ms")
    assert sum(row[phase] for phase in phases) == pytest.approx(row["total_ms"], rel=0.05)
    path = f"/v1/decisions/{decision_id}"
    assert call(url, "GET", path, key="other")[0] == 404


def test_the_cost_header_says_what_the_ledger_says(url: str) -> None:
    _, headers, _ = ask(url)
    row = until(lambda: decision(url, headers["x-crossroads-decision-id"]))
    assert float(headers["x-crossroads-cost-usd"]) == pytest.approx(row["cost_usd"])


def test_a_call_that_the_budget_refuses_gets_every_header_once(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    limits, budgets = {"requests_per_day": 9}, [{"usd": 0.001, "per": "day"}]
    key = {"name": "mine", "secret": KEYS["mine"], "limits": limits, "budgets": budgets}
    with serving_runtime(runtime_of(write(tmp_path, upstream, governance={"keys": [key]}))) as url:
        body = json.dumps({"model": "ok", "messages": HELLO})
        with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)) as there:
            given = {"authorization": f"Bearer {KEYS['mine']}"}
            there.request("POST", "/v1/chat/completions", body, given)
            response = there.getresponse()
            names = [name.lower() for name, _ in response.getheaders()]
            assert response.status == 429
            assert "does not fit the budget" in response.read().decode()
        assert "x-ratelimit-remaining-requests" in names
        assert "retry-after" not in names
        assert len(names) == len(set(names))
        assert ask(url, model="ok", max_tokens=9)[0] == 200


def test_overhead_is_split_by_phase_in_a_standard_header(url: str) -> None:
    _, headers, _ = ask(url)
    names = [part.split(";")[0].strip() for part in headers["server-timing"].split(",")]
    assert names == ["queue", "route", "connect", "upstream", "relay"]


def test_an_answer_is_judged_by_its_decision_id(url: str) -> None:
    _, headers, _ = ask(url)
    decision_id = headers["x-crossroads-decision-id"]
    until(lambda: decision(url, decision_id))
    judgement = {"decision_id": decision_id, "score": 0.75, "source": "user"}
    status, _, kept = call(url, "POST", "/v1/feedback", judgement)
    assert (status, kept["reward"]) == (200, 0.75)
    row = until(lambda: (row := decision(url, decision_id)) and row["feedback"] and row)
    assert row["feedback"][0]["score"] == 0.75
    assert call(url, "POST", "/v1/feedback", judgement, key="other")[0] == 404
    assert call(url, "POST", "/v1/feedback", {**judgement, "score": 2})[0] == 400
    assert call(url, "POST", "/v1/feedback", {**judgement, "decision_id": "dec_no"})[0] == 404


@pytest.mark.parametrize("endpoint", ["feedback", "decisions"])
def test_a_row_that_another_worker_has_yet_to_write_is_waited_for(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    decision_id = f"dec_{0:032x}"
    settings = LedgerSettings(url=f"sqlite:{tmp_path / 'ledger.db'}", flush_ms=60_000)
    looked = Runtime.read

    async def look_too_early(runtime: Runtime, *given: Any) -> Any:
        found = await looked(runtime, *given)
        worker.append(record(decision_id, key_id="mine"))
        assert await asyncio.to_thread(worker.flush)
        return found

    with closing(open_ledger(settings)) as worker:
        monkeypatch.setattr(Runtime, "read", look_too_early)
        if endpoint == "feedback":
            judgement = {"decision_id": decision_id, "score": 1}
            assert call(url, "POST", "/v1/feedback", judgement)[0] == 200
        else:
            assert call(url, "GET", f"/v1/decisions/{decision_id}")[0] == 200
        monkeypatch.undo()


def test_the_wait_for_a_row_is_bounded_and_only_for_what_may_be_a_decision(
    tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = {"url": f"sqlite:{tmp_path / 'ledger.db'}", "flush_ms": 60_000}
    path = write(tmp_path, upstream, ledger=ledger)
    with serving_runtime(runtime_of(path)) as url:  # a client gives up after ten seconds
        with monkeypatch.context() as patch:
            patch.setattr(runtime_module, "_LONGEST_WAIT_S", 0.01)
            assert call(url, "GET", "/v1/decisions/dec_none")[0] == 404
        monkeypatch.setattr(runtime_module, "_LONGEST_WAIT_S", 60.0)
        assert call(url, "GET", "/v1/decisions/none")[0] == 404


def test_a_changed_file_is_served_without_a_restart(
    url: str, path: Path, tmp_path: Path, upstream: FakeUpstream
) -> None:
    assert ask(url)[1]["x-crossroads-model"] == "ok"
    write(tmp_path, upstream, policies={"auto": {"kind": "split", "weights": {"usage": 1}}})
    until(lambda: ask(url)[1]["x-crossroads-model"] == "usage")


def test_a_broken_file_leaves_the_old_configuration_serving_and_says_so(
    url: str, path: Path, tmp_path: Path, upstream: FakeUpstream
) -> None:
    def configuration() -> str:
        return str(call(url, "GET", "/health/ready")[2]["parts"]["configuration"])

    write(tmp_path, upstream, policies={"auto": {"kind": "split", "weights": {"none": 1}}})
    until(lambda: configuration() == "degraded")
    assert ask(url)[1]["x-crossroads-model"] == "ok"
    write(tmp_path, upstream)
    until(lambda: configuration() == "ok")


def test_a_reload_that_fails_at_its_last_step_leaves_keys_and_limits_watched(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    keys = tmp_path / "keys.yaml"
    governance = {"keys_file": str(keys)}
    secret, _ = KeyFile(keys).create("alice")
    path = write(tmp_path, upstream, governance=governance, watch_s=None)
    runtime, loops = runtime_of(path), []
    start = runtime.start

    async def start_and_tell() -> None:
        loops.append(asyncio.get_running_loop())
        await start()

    runtime.start = start_and_tell  # type: ignore[method-assign]
    given = {"authorization": f"Bearer {secret}"}
    with serving_runtime(runtime) as url:
        assert call(url, "GET", "/v1/models", **given)[0] == 200
        pool = json.loads((tmp_path / "pool.json").read_text("utf-8"))
        pool["models"][0]["api_key"] = "${NOT_SET_ANYWHERE}"  # found when the upstream starts
        (tmp_path / "pool.json").write_text(json.dumps(pool), "utf-8")
        failed = asyncio.run_coroutine_threadsafe(runtime.reload(), loops[0])
        with pytest.raises(CrossroadsError, match="NOT_SET_ANYWHERE"):
            failed.result(10)
        KeyFile(keys).revoke("alice")
        until(lambda: call(url, "GET", "/v1/models", **given)[0] == 401)


def test_a_defect_in_a_reload_is_shown_and_the_next_change_is_followed(
    path: Path, tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CompiledPolicies, "adopt", lambda *_: 1 / 0)
    with serving_runtime(runtime_of(path)) as url:
        write(tmp_path, upstream, policies={"auto": {"kind": "split", "weights": {"usage": 1}}})
        ready = "/health/ready"
        until(lambda: call(url, "GET", ready)[2]["parts"]["configuration"] == "degraded")
        assert ask(url)[1]["x-crossroads-model"] == "ok"
        monkeypatch.undo()
        write(tmp_path, upstream, policies={"auto": {"kind": "split", "weights": {"trickle-1": 1}}})
        until(lambda: ask(url)[1]["x-crossroads-model"] == "trickle-1")


def test_warnings_are_logged_at_the_start_and_new_ones_at_a_reload(
    path: Path, tmp_path: Path, upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async def warned(advise: Callable[[Built], list[Finding]]) -> list[str]:
        caplog.clear()
        read = partial(read_config, path)
        runtime = Runtime(read(), read=read, path=path, advise=advise)
        await runtime.start()
        await runtime.reload()
        await runtime.close()
        return [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"]

    def refuse(_: Built) -> list[Finding]:
        raise InputError("keys.yaml: it has changed again")

    finding = Finding("warning", "pool", "no price for m: budgets see it as free")
    assert asyncio.run(warned(lambda _: [finding])) == [f"pool: {finding.message}"]  # once
    later = iter([[finding], [finding, Finding("warning", "pool", "a new one")]])
    assert asyncio.run(warned(lambda _: next(later))) == [
        f"pool: {finding.message}",
        "pool: a new one",
    ]
    assert asyncio.run(warned(refuse)) == []
    assert asyncio.run(warned(lambda _: [1 / 0])) == []
    assert "was not found out" in caplog.text


def test_what_only_a_restart_changes_is_told_by_the_log_and_the_health(
    tmp_path: Path, upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, upstream)

    async def reload() -> None:
        runtime = runtime_of(path)
        await runtime.start()
        try:
            ledger = {"url": f"sqlite:{tmp_path / 'other.db'}", "flush_ms": 10}
            write(tmp_path, upstream, port=8099, ledger=ledger)
            told = "port, ledger will only change with a restart"
            assert told in (await runtime.reload())["message"]
            (warned,) = [entry for entry in caplog.records if entry.levelname == "WARNING"]
            assert told in warned.getMessage()
            facts = runtime.health()["parts"]["configuration"]
            assert (facts["status"], facts["note"]) == ("ok", told)
            write(tmp_path, upstream)
            await runtime.reload()
            assert "note" not in runtime.health()["parts"]["configuration"]
        finally:
            await runtime.close()

    asyncio.run(reload())


def test_a_stream_outlives_the_configuration_it_began_under(
    url: str, path: Path, tmp_path: Path, upstream: FakeUpstream
) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    body = json.dumps({"model": "trickle-1", "messages": HELLO, "stream": True})
    given = {"authorization": f"Bearer {KEYS['mine']}"}
    connection.request("POST", "/v1/chat/completions", body, given)
    response = connection.getresponse()
    first = response.readline()
    write(tmp_path, upstream, policies={"auto": {"kind": "split", "weights": {"usage": 1}}})
    until(lambda: ask(url)[1]["x-crossroads-model"] == "usage")
    assert first.startswith(b"data: ")
    assert response.read().endswith(b"data: [DONE]\n\n")
    connection.close()


def test_models_are_listed_in_the_shape_of_the_client(url: str) -> None:
    openai = call(url, "GET", "/v1/models")[2]
    assert [card["id"] for card in openai["data"]] == ["auto", "ok", "usage", "trickle-1"]
    anthropic = call(url, "GET", "/v1/models", **{"anthropic-version": "2023-06-01"})[2]
    assert anthropic["data"][0]["type"] == "model"
    assert (anthropic["first_id"], anthropic["has_more"]) == ("auto", False)


def test_errors_have_the_shape_of_the_api_that_was_called(url: str) -> None:
    wrong = {"model": "none", "max_tokens": 1, "messages": HELLO}
    status, _, body = call(url, "POST", "/v1/messages", wrong)
    assert (status, body["type"], body["error"]["type"]) == (404, "error", "not_found_error")
    status, _, body = call(url, "POST", "/v1/chat/completions", wrong)
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    status, _, body = call(url, "POST", "/v1/messages", wrong, authorization="Bearer wrong")
    assert (status, body["error"]["type"]) == (401, "authentication_error")


def test_open_paths_need_no_key_and_tell_no_reasons(url: str) -> None:
    for path in ("/health", "/health/ready", "/version"):
        status, _, body = call(url, "GET", path, authorization="")
        assert status == 200
        assert "reason" not in json.dumps(body)
    assert call(url, "GET", "/metrics", authorization="")[0] == 401
    metrics = call(url, "GET", "/metrics")[2]
    assert b"crossroads_phase_seconds_count" in metrics


def test_the_document_of_the_api_names_the_models(url: str) -> None:
    document = call(url, "GET", "/openapi.json")[2]
    schema = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    model = schema["content"]["application/json"]["schema"]["properties"]["model"]
    assert model["examples"][0] == "auto"


def test_a_gateway_without_a_ledger_says_so(tmp_path: Path, upstream: FakeUpstream) -> None:
    with serving_runtime(runtime_of(write(tmp_path, upstream, ledger=None))) as url:
        assert ask(url)[0] == 200
        for method, path, body in (("GET", "/v1/decisions/dec_1", None), ("POST", "/feedback", {})):
            status, _, found = call(url, method, path, body)
            assert (status, found["error"]["code"]) == (404, "no_ledger")


def test_what_only_a_restart_can_change_stays_as_it_was_however_often_files_change(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    path = write(tmp_path, upstream, ledger=None)
    with serving_runtime(runtime_of(path)) as url:
        for weights in ({"usage": 1}, {"trickle-1": 1}):
            # with a ledger from now on
            write(tmp_path, upstream, policies={"auto": {"kind": "split", "weights": weights}})
            (model,) = weights
            until(lambda model=model: ask(url)[1]["x-crossroads-model"] == model)
        judgement = {"decision_id": "dec_1", "score": 1}
        status, _, found = call(url, "POST", "/v1/feedback", judgement)
        assert (status, found["error"]["code"]) == (404, "no_ledger")


@pytest.mark.parametrize("api", ["/v1/messages", "/v1/messages/count_tokens"])
def test_anthropics_clients_find_the_request_id_under_their_name(url: str, api: str) -> None:
    for key in (KEYS["mine"], "wrong"):
        _, headers, _ = call(url, "POST", api, [], authorization=f"Bearer {key}")
        assert headers["request-id"].startswith("req_")


def test_tokens_are_counted_for_whatever_a_request_may_name(url: str) -> None:
    def status(model: str, api: str) -> int:
        body = {"model": model, "messages": HELLO, "max_tokens": 9}
        return int(call(url, "POST", api, body)[0])

    statuses = {
        model: [status(model, f"/v1/messages{of}") for of in ("/count_tokens", "")]
        for model in ("auto", "ok", "gone", "ok:gone")
    }
    assert statuses == {
        "auto": [200, 200],
        "ok": [200, 200],
        "gone": [404, 404],
        "ok:gone": [404, 404],
    }


def test_requests_refused_before_they_are_a_call_are_counted(url: str) -> None:
    call(url, "GET", "/v1/models", authorization="Bearer wrong")
    assert call(url, "POST", "/v1/chat/completions", [])[0] == 400
    metrics = call(url, "GET", "/metrics")[2]
    for status in (b"400", b"401"):
        assert b'crossroads_refused_total{status="%b"} 1.0' % status in metrics


def test_a_stream_that_the_end_of_the_server_cuts_short_does_not_look_whole(
    tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[Any] = []
    answer = Gateway._answer

    async def answer_and_tell(self: Gateway, exchange: Exchange) -> None:
        tasks.append((asyncio.get_running_loop(), asyncio.current_task()))
        await answer(self, exchange)

    monkeypatch.setattr(Gateway, "_answer", answer_and_tell)
    with serving_runtime(runtime_of(write(tmp_path, upstream, ledger=None))) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        body = json.dumps({"model": "trickle-1", "messages": HELLO, "stream": True})
        given = {"authorization": f"Bearer {KEYS['mine']}"}
        connection.request("POST", "/v1/chat/completions", body, given)
        response = connection.getresponse()
        response.readline()
        loop, task = tasks[-1]
        loop.call_soon_threadsafe(task.cancel)  # what a server does when it waits no longer
        rest = response.read()
        connection.close()
    assert b"server_stopping" in rest
    assert b"[DONE]" not in rest


def test_the_collectors_thresholds_are_the_gateways_only_while_it_runs(path: Path) -> None:
    async def run() -> int:
        runtime = runtime_of(path)
        await runtime.start()
        try:
            return gc.get_threshold()[0]
        finally:
            await runtime.close()

    before = gc.get_threshold()
    gc.set_threshold(800, 9, 8)
    try:
        assert asyncio.run(run()) > 800
        assert gc.get_threshold() == (800, 9, 8)
    finally:
        gc.set_threshold(*before)
