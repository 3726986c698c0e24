"""What SECURITY.md promises, of the whole gateway over real sockets: nobody gets what is another's.

Limits of connections, heads and bodies: ``test_hardening.py``. The admin server's own rules:
``admin/test_access.py``.
"""

from __future__ import annotations

import hmac
import http.client
import json
import socket
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from crossroads.gateway.config import read_config
from crossroads.gateway.governance.keyfile import KeyFile
from crossroads.gateway.runtime import Runtime
from crossroads.gateway.server import bind, url_of
from tests.gateway.configured import KEYS, ask, call, decision, runtime_of, until, write
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.serving import serving_runtime

SECRET = "a-thing-nobody-else-may-read"
PROVIDER = "sk-provider-0123456789abcdef"
TOKEN = "an-admin-token-of-some-length"
CHAT = "/v1/chat/completions"


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@contextmanager
def gateway(folder: Path, upstream: FakeUpstream, **fields: Any) -> Iterator[str]:
    with serving_runtime(runtime_of(write(folder, upstream, **fields))) as url:
        yield url


@pytest.fixture
def pool(tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> str:
    """A pool whose key is in the environment, as documented."""
    monkeypatch.setenv("PROVIDER_KEY", PROVIDER)
    names = ("ok", "usage", "status-401", "status-500", "cut-3", "hangup")
    models = [
        {"name": name, "endpoint": upstream.url, "api_key": "${PROVIDER_KEY}"} for name in names
    ]
    path = tmp_path / "keyed.json"
    path.write_text(json.dumps({"name": "keyed", "models": models}), "utf-8")
    return str(path)


# --- keys -----------------------------------------------------------------------------------------


def test_no_key_is_in_any_file_header_body_or_log(
    tmp_path: Path, upstream: FakeUpstream, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    secret, _ = KeyFile(tmp_path / "keys.yaml").create("filed")
    logs = {"logs": {"level": "debug", "file": str(tmp_path / "log.jsonl")}}
    governance = {"keys_file": str(tmp_path / "keys.yaml")}
    seen: list[str] = []
    before = len(upstream.requests)
    with gateway(tmp_path, upstream, pool=pool, telemetry=logs, governance=governance) as url:
        for model in ("ok", "usage", "status-401", "status-500", "cut-3", "hangup", "none"):
            for stream in (False, True):
                body = {"model": model, "messages": said("hello"), "stream": stream}
                for header in ({"authorization": f"Bearer {secret}"}, {"x-api-key": secret}):
                    given = {"authorization": "", **header}
                    status, headers, answer = call(url, "POST", CHAT, body, **given)
                    seen.append(f"{headers} {answer}")
                    assert status != 401
        wrong = call(url, "POST", CHAT, {}, authorization=f"Bearer {secret}x")
        seen.append(str(wrong))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / "log.jsonl" in written
    seen += [path.read_bytes().decode("latin-1") for path in written]
    received = [headers for headers, _ in upstream.requests[before:]]
    assert received
    assert {headers["Authorization"] for headers in received} == {f"Bearer {PROVIDER}"}
    for text in (*seen, caplog.text, str([{**h, "Authorization": ""} for h in received])):
        assert secret not in text
        assert PROVIDER not in text


def test_a_key_is_compared_in_constant_time(
    tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []

    compare = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append(len(a))
        return compare(a, b)

    monkeypatch.setattr("crossroads.gateway.governance.keys.hmac.compare_digest", counted)
    with gateway(tmp_path, upstream) as url:
        assert ask(url)[0] == 200
        assert call(url, "GET", "/v1/models", authorization="Bearer sk-test-0123")[0] == 401
    assert compared
    assert set(compared) == {32}, "digests are compared, whatever the length of what was sent"


def test_a_key_reaches_only_what_is_on_its_list(tmp_path: Path, upstream: FakeUpstream) -> None:
    listed = {"name": "mine", "secret": KEYS["mine"], "models": ["cheap"]}
    policies = {
        "cheap": {"kind": "split", "weights": {"ok": 1}},
        "dear": {"kind": "split", "weights": {"usage": 1}},
    }
    before = len(upstream.requests)
    with gateway(tmp_path, upstream, policies=policies, governance={"keys": [listed]}) as url:
        for model in ("dear", "usage", "ok", "dear:tradeoff:1", "auto"):
            assert ask(url, model)[0] in (403, 404), model
        body = {"model": "cheap", "messages": said("hello")}
        assert call(url, "POST", CHAT, body, **{"x-crossroads-policy": "dear"})[0] == 403
        assert ask(url, "cheap", crossroads={"policy": "dear"})[0] == 403
        assert ask(url, "cheap", crossroads={"policy": "usage"})[0] == 403
        shown = call(url, "GET", "/v1/models")[2]["data"]
        assert [card["id"] for card in shown] == ["cheap"]
        assert len(upstream.requests) == before
        assert ask(url, "cheap")[0] == 200


def preferring(**models: str) -> list[dict[str, str]]:
    """Preferences of a request's own: all about the same, so that any may be chosen."""
    return [
        {"name": name, "description": "greetings, hello", "model": model}
        for name, model in models.items()
    ]


PREFER = {"kind": "preferences", "otherwise": "ok", "policies": preferring(greeting="ok")}


def test_preferences_of_a_request_open_nothing_that_its_key_may_not_ask_for(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    listed = {"name": "mine", "secret": KEYS["mine"], "models": ["cheap"]}
    cheap = {**PREFER, "otherwise": "trickle-1"}
    with gateway(
        tmp_path, upstream, policies={"cheap": cheap}, governance={"keys": [listed]}
    ) as url:
        refused = ask(url, "cheap", routing_preferences=preferring(a="usage", b="ok"))
        assert (refused[0], refused[2]["error"]["code"]) == (403, "model_not_allowed")
        served = ask(url, "cheap", routing_preferences=preferring(a="ok", b="trickle-1"))
        assert served[1]["x-crossroads-model"] in ("ok", "trickle-1")


def test_pages_of_other_sites_cannot_spend_what_is_unlocked_on_this_machine(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    body = {"model": "ok", "messages": said("hello")}
    before = len(upstream.requests)
    with gateway(tmp_path, upstream, governance={}) as url:
        for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example:80"):
            refused = call(url, "POST", CHAT, body, authorization="", origin=origin)
            assert (refused[0], refused[2]["error"]["code"]) == (403, "foreign_origin"), origin
        assert len(upstream.requests) == before
        for origin in (url, "http://localhost:3000", "http://[::1]:8080", "tauri://app"):
            assert call(url, "POST", CHAT, body, authorization="", origin=origin)[0] == 200, origin
    with gateway(tmp_path, upstream) as url:  # with keys a page must have one
        assert call(url, "POST", CHAT, body, origin="https://chat.example")[0] == 200


# --- tenants --------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path, upstream: FakeUpstream) -> Iterator[str]:
    """Two tenants, and everything on that could be shared between them."""
    with gateway(tmp_path, upstream, cache={"exact": True, "sampling": "any"}) as url:
        yield url


def test_tenants_do_not_share_cached_answers(shared: str, upstream: FakeUpstream) -> None:
    body = {"model": "ok", "messages": said("shared?"), "temperature": 0}
    before = len(upstream.requests)
    for key in ("mine", "other"):
        first, again = (call(shared, "POST", CHAT, body, key=key)[1] for _ in range(2))
        assert "x-crossroads-cache" not in first
        assert again["x-crossroads-cache"] == "exact"
    assert len(upstream.requests) == before + 2


def test_a_key_with_the_name_of_a_team_does_not_get_the_teams_answers(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    tenants = [
        {"name": "anna", "secret": KEYS["mine"], "team": "red"},
        {"name": "red", "secret": KEYS["other"]},
    ]
    governance = {"keys": tenants, "teams": {"red": {}}}
    cache = {"exact": True, "sampling": "any", "scope": "team"}
    body = {"model": "ok", "messages": said("red?"), "temperature": 0}
    with gateway(tmp_path, upstream, governance=governance, cache=cache) as url:
        call(url, "POST", CHAT, body, key="mine")
        assert "x-crossroads-cache" not in call(url, "POST", CHAT, body, key="other")[1]


def test_tenants_do_not_share_idempotency_keys(shared: str, upstream: FakeUpstream) -> None:
    key = {"Idempotency-Key": "order-1"}
    answers, before = [], len(upstream.requests)
    for tenant in ("mine", "other"):
        body = {"model": "ok", "messages": said(f"I am {tenant}")}
        status, headers, _ = call(shared, "POST", CHAT, body, key=tenant, **key)
        assert status == 200
        assert "x-crossroads-replayed" not in headers
        answers.append(headers["x-crossroads-decision-id"])
    assert answers[0] != answers[1]
    sent = [headers["idempotency-key"] for headers, _ in upstream.requests[before:]]
    assert len(set(sent)) == 2, "all tenants have one account upstream"
    assert "order-1" not in sent


def test_tenants_do_not_see_each_others_responses(shared: str) -> None:
    made = call(shared, "POST", "/v1/responses", {"model": "ok", "input": SECRET})[2]
    path = f"/v1/responses/{made['id']}"
    for method, where in (("GET", path), ("GET", f"{path}/input_items"), ("DELETE", path)):
        status, _, body = call(shared, method, where, key="other")
        assert status == 404
        assert SECRET not in str(body)
    goes_on = {"model": "ok", "input": "go on", "previous_response_id": made["id"]}
    assert call(shared, "POST", "/v1/responses", goes_on, key="other")[0] in (400, 404)
    assert call(shared, "GET", path)[0] == 200


def test_tenants_do_not_see_or_judge_each_others_decisions(shared: str) -> None:
    decision_id = ask(shared)[1]["x-crossroads-decision-id"]
    until(lambda: decision(shared, decision_id))
    assert call(shared, "GET", f"/v1/decisions/{decision_id}", key="other")[0] == 404
    judged = {"decision_id": decision_id, "score": 0}
    assert call(shared, "POST", "/v1/feedback", judged, key="other")[0] == 404


def test_what_a_key_spends_is_shown_to_operators_only(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    tenants = [
        {"name": "tenant-a", "secret": KEYS["mine"]},
        {"name": "operator", "secret": KEYS["other"], "tags": ["metrics"]},
    ]
    with gateway(tmp_path, upstream, governance={"keys": tenants}) as url:
        ask(url)
        shown = {key: call(url, "GET", "/metrics", key=key)[2] for key in KEYS}
    assert b'crossroads_key_requests_total{key="tenant-a"}' in shown["other"]
    assert b"tenant-a" not in shown["mine"]
    assert b"crossroads_phase_seconds_count" in shown["mine"]
    assert b"crossroads_key_" not in shown["mine"]


# --- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [[], ["text", "answers"]], ids=["default", "asked-for"])
def test_texts_are_stored_only_if_asked_for(
    tmp_path: Path, upstream: FakeUpstream, keep: list[str]
) -> None:
    ledger = {"url": f"sqlite:{tmp_path / 'ledger.db'}", "flush_ms": 10, "keep": keep}
    logs = {"logs": {"level": "debug", "file": str(tmp_path / "log.jsonl")}}
    with gateway(tmp_path, upstream, ledger=ledger, telemetry=logs) as url:
        for path in (CHAT, "/v1/messages"):
            body = {"model": "ok", "max_tokens": 9, "messages": said(SECRET)}
            assert call(url, "POST", path, body)[0] == 200
    files = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    holding = {name for name, data in files.items() if SECRET.encode() in data}
    assert holding == ({"ledger.db"} if keep else set())
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        prompts = [row[0] for row in connection.execute("SELECT prompt FROM calls")]
    connection.close()
    assert prompts == ([SECRET] * 2 if keep else [None, None] if prompts[0] is None else ["", ""])


def test_files_with_keys_or_calls_are_their_owners_alone(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    KeyFile(tmp_path / "keys.yaml").create("filed")
    with gateway(tmp_path, upstream) as url:
        ask(url)
        names = [path.name for path in tmp_path.iterdir() if path.name.startswith("ledger.db")]
        for name in (*names, "keys.yaml"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name
    assert "ledger.db" in names


# --- what is sent out -----------------------------------------------------------------------------


def raw(url: str, request: bytes) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


HOSTILE = "evil\r\nset-cookie: a=1\r\n\r\n<script>\u2028\x00\u0100"


@pytest.mark.parametrize(
    "fields",
    [
        {"model": HOSTILE},
        {"model": f"auto:{HOSTILE}"},
        {"model": "ok", "user": HOSTILE},
        {"model": "auto", "metadata": {HOSTILE: HOSTILE}},
        {"model": "auto", "crossroads": {"policy": HOSTILE, "tags": [HOSTILE]}},
        {"model": "auto", "crossroads": {"tags": [HOSTILE], "session": HOSTILE}},
        {"model": "auto", "routing_preferences": [{"name": HOSTILE, "models": ["ok"]}]},
    ],
    ids=["model", "rule", "user", "metadata", "policy", "tags", "preferences"],
)
def test_nothing_in_a_request_becomes_a_header_of_the_answer(
    shared: str, fields: dict[str, Any]
) -> None:
    body = json.dumps({"messages": said(HOSTILE), **fields}).encode()
    head = b"POST %b HTTP/1.1\r\nhost: h\r\nconnection: close\r\n" % CHAT.encode()
    head += b"authorization: Bearer %b\r\n" % KEYS["mine"].encode()
    head += b"x-request-id: a\tb\r\ncontent-length: %d\r\n\r\n" % len(body)
    answer = raw(shared, head + body)
    sent, _, _ = answer.partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 ")
    assert not answer.startswith(b"HTTP/1.1 500")
    names = [line.partition(b":")[0].lower() for line in sent.split(b"\r\n")[1:]]
    assert b"set-cookie" not in names
    assert all(byte >= 0x20 for line in sent.split(b"\r\n") for byte in line)


def test_a_name_that_a_request_brings_along_stays_in_its_line(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    own = preferring(**{HOSTILE: "usage"})
    own.append({"name": "trips", "description": "hotels and flights", "model": "ok"})
    with gateway(tmp_path, upstream, policies={"auto": PREFER}) as url:
        status, headers, _ = ask(url, routing_preferences=own)
    assert status == 200
    assert "set-cookie" not in headers
    assert "evil" in headers["x-crossroads-reason"] + headers["x-crossroads-policy"]


class Trap:
    """A server that nobody should reach; it counts who does."""

    def __init__(self) -> None:
        self.num_reached = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, name="trap")
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/secret"

    def __enter__(self) -> Trap:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.num_reached += 1
            connection.close()


def test_nothing_in_a_request_makes_the_gateway_fetch(shared: str, upstream: FakeUpstream) -> None:
    with Trap() as trap:
        image = {"type": "image_url", "image_url": {"url": trap.url}}
        source = {"type": "image", "source": {"type": "url", "url": trap.url}}
        aside = {"base_url": trap.url, "api_base": trap.url, "endpoint": trap.url}
        requests = [
            (CHAT, {"messages": [{"role": "user", "content": [image]}], **aside}),
            ("/v1/messages", {"messages": [{"role": "user", "content": [source]}], **aside}),
            ("/v1/responses", {"input": [{"role": "user", "content": [
                {"type": "input_image", "image_url": trap.url}]}], **aside}),
        ]  # fmt: skip
        before = len(upstream.requests)
        for path, fields in requests:
            headers = {"host": "127.0.0.1", "x-forwarded-host": "evil", "forwarded": "host=evil"}
            body = {"model": "ok", "max_tokens": 9, **fields}
            assert call(shared, "POST", path, body, **headers)[0] == 200
        assert trap.num_reached == 0
    sent = json.dumps([body["messages"] for _, body in upstream.requests[before:]])
    assert sent.count(trap.url) == 3, "a URL is the upstream's to fetch, if it likes"


# --- the admin server -----------------------------------------------------------------------------


@pytest.fixture
def admin(
    tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str]]:
    """URLs of the gateway and of its admin server, which asks for a token."""
    monkeypatch.setenv("PROVIDER_KEY", PROVIDER)
    path = write(tmp_path, upstream, admin={"port": 0, "token": TOKEN})
    listener = bind("127.0.0.1", 0)
    runtime = Runtime(read_config(path), path=path, admin_socket=listener)
    with serving_runtime(runtime) as url:
        yield url, url_of(listener)


def test_the_admin_server_and_the_gateway_have_keys_of_their_own(admin: tuple[str, str]) -> None:
    url, admin_url = admin
    for path in ("/api/keys", "/api/status", "/api/decisions"):
        assert call(admin_url, "GET", path)[0] == 401  # with a client's key
        assert call(admin_url, "GET", path, authorization=f"Bearer {TOKEN}")[0] == 200
        assert call(url, "GET", path)[0] == 404
    assert call(url, "POST", CHAT, {}, authorization=f"Bearer {TOKEN}")[0] == 401
    shown = str(call(admin_url, "GET", "/api/keys", authorization=f"Bearer {TOKEN}"))
    assert not any(secret in shown for secret in KEYS.values())


def test_a_configuration_that_is_only_checked_tells_no_secret_of_the_environment(
    admin: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["rule: ${PROVIDER_KEY}", "pool: ${PROVIDER_KEY}", "workers: ${PROVIDER_KEY}"]
    texts += ["ledger: ${PROVIDER_KEY}", "telemetry: {logs: {level: '${PROVIDER_KEY}'}}"]
    for text in texts:
        connection = http.client.HTTPConnection(admin[1].removeprefix("http://"), timeout=10)
        headers = {"authorization": f"Bearer {TOKEN}"}
        connection.request("POST", "/api/check-config", text, headers)
        found = json.loads(connection.getresponse().read())
        connection.close()
        assert found["ok"] is False
        assert PROVIDER[:4] not in json.dumps(found), text
    assert PROVIDER not in caplog.text


def test_beyond_this_machine_the_admin_server_needs_a_token(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    path = write(tmp_path, upstream, admin={"host": "0.0.0.0"})
    with pytest.raises(Exception, match="set a token"):
        read_config(path)


# --- load -----------------------------------------------------------------------------------------


def test_what_is_too_large_or_too_deep_is_the_clients_mistake(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    before = len(upstream.requests)
    with gateway(tmp_path, upstream, limits={"body_bytes": 100_000}) as url:
        assert ask(url, "ok", padding="x" * 200_000)[0] == 413
        deep = b'{"model":"ok","messages":' + b"[" * 40_000 + b"]" * 40_000 + b"}"
        head = b"POST %b HTTP/1.1\r\nhost: h\r\nconnection: close\r\n" % CHAT.encode()
        head += b"authorization: Bearer %b\r\n" % KEYS["mine"].encode()
        answer = raw(url, head + b"content-length: %d\r\n\r\n" % len(deep) + deep)
        assert answer.startswith(b"HTTP/1.1 400")
        assert ask(url)[0] == 200
    assert len(upstream.requests) == before + 1


def test_one_tenant_at_its_limit_does_not_hold_up_another(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    tenants = [
        {"name": "mine", "secret": KEYS["mine"], "limits": {"requests_per_minute": 2}},
        {"name": "other", "secret": KEYS["other"]},
    ]
    with gateway(tmp_path, upstream, governance={"keys": tenants}) as url:
        body = {"model": "ok", "messages": said("hello")}
        assert [call(url, "POST", CHAT, body)[0] for _ in range(3)] == [200, 200, 429]
        assert call(url, "POST", CHAT, body, key="other")[0] == 200


def test_a_defect_is_told_to_the_client_in_general_words(
    tmp_path: Path, upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = runtime_of(write(tmp_path, upstream))

    async def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"the key is {SECRET}")

    runtime.built.services.policies.choose = broken  # type: ignore[method-assign]
    with serving_runtime(runtime) as url:
        status, _, body = ask(url)
    assert (status, body["error"]["code"]) == (500, "internal_error")
    assert SECRET not in str(body)
    assert "RuntimeError" in caplog.text, "the log says what it was"
