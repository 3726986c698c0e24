from __future__ import annotations

import asyncio
import http.client
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest

from crossroads.core.decision import Decision
from crossroads.core.errors import UnavailableError
from crossroads.gateway.call import Body, Event
from crossroads.gateway.contracts import Order
from crossroads.prompts.experts.base import completion
from crossroads.prompts.experts.tools import ToolExpert
from tests.gateway.serving import FakeRouter, as_upstream, gateway_of, serving

HELLO = {"role": "user", "content": "hello"}
KEY = "correct horse"


@dataclass(eq=False)
class Faulty:
    """An upstream with a defect of our own."""

    name: str = "faulty"
    streamed: list[Event] = field(default_factory=list)
    fails_to_start: bool = False
    speaks = frozenset({"chat"})

    async def start(self) -> None:
        if self.fails_to_start:
            raise UnavailableError("the model file is missing")

    async def close(self) -> None:
        pass

    async def complete(self, order: Order) -> Body:
        raise KeyError("a secret of the house")

    async def stream(self, order: Order) -> Any:
        if self.streamed:
            yield self.streamed
        raise KeyError("a secret of the house")


def echo(name: str) -> ToolExpert:
    return ToolExpert(name=name, answer=lambda text: f"{name}: {text}", refusal="no")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    begun = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
    upstreams = {
        "echo": as_upstream(echo("echo")),
        "org/model:v1": as_upstream(echo("slashed")),
        "faulty": Faulty(),
        "half": Faulty(streamed=[begun]),
    }
    router = FakeRouter("echo", "echo")
    with serving(gateway_of(upstreams, router, body_limit=10_000)) as running:
        yield running


@pytest.fixture(scope="module")
def locked_url() -> Iterator[str]:
    with serving(gateway_of({"echo": as_upstream(echo("echo"))}, api_key=KEY)) as running:
        yield running


def call(
    url: str,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return response.status, found, response.read()
    finally:
        connection.close()


def chat(model: str, **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": [HELLO], **fields}).encode()


def error_of(body: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_every_path_works_with_and_without_v1(url: str, prefix: str) -> None:
    assert call(url, "GET", f"{prefix}/health")[::2] == (200, b'{"status":"ok"}')
    assert call(url, "GET", f"{prefix}/models")[0] == 200
    assert call(url, "GET", f"{prefix}/models/")[0] == 200
    assert call(url, "GET", f"{prefix}/models/echo")[0] == 200
    status, _, body = call(url, "POST", f"{prefix}/chat/completions", chat("echo"))
    assert status == 200
    assert json.loads(body)["choices"][0]["message"]["content"] == "echo: hello"


def test_models_lists_auto_and_every_model(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    names = [model.id for model in client.models.list()]
    assert names == ["auto", "echo", "org/model:v1", "faulty", "half"]
    assert client.models.retrieve("org/model:v1").owned_by == "crossroads"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("nothing")
    assert missing.value.code == "model_not_found"


def test_auto_is_not_listed_where_no_router_is_loaded(locked_url: str) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    _, _, body = call(locked_url, "GET", "/v1/models", headers=headers)
    assert [card["id"] for card in json.loads(body)["data"]] == ["echo"]
    status, _, body = call(locked_url, "POST", "/v1/chat/completions", chat("auto"), headers)
    assert (status, error_of(body)["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("model", ["nothing", "auto-2", "Echo"])
def test_an_unknown_model_is_not_found(url: str, model: str) -> None:
    status, _, body = call(url, "POST", "/v1/chat/completions", chat(model))
    error = error_of(body)
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert error["type"] == "invalid_request_error"


def test_an_unknown_rule_is_a_bad_request(url: str) -> None:
    status, _, body = call(url, "POST", "/v1/chat/completions", chat("auto:broken"))
    assert (status, error_of(body)["code"]) == (400, "invalid_rule")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/v2/models", "/v1/v1/models", "/v1models"])
def test_an_unknown_path_is_not_found(url: str, path: str) -> None:
    status, _, body = call(url, "GET", path)
    assert (status, error_of(body)["code"]) == (404, "unknown_url")
    is_twice = path.startswith("/v1/v1/")
    assert ("leave it out of its base URL" in error_of(body)["message"]) is is_twice


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/echo", "GET"),
        ("POST", "/health", "GET"),
    ],
)
def test_a_wrong_method_is_told_the_right_one(
    url: str, method: str, path: str, allowed: str
) -> None:
    status, headers, body = call(url, method, path)
    assert (status, headers["allow"]) == (405, allowed)
    assert error_of(body)["code"] == "method_not_allowed"


def test_head_answers_like_get_without_a_body(url: str) -> None:
    status, headers, body = call(url, "HEAD", "/health")
    assert (status, body) == (200, b"")
    assert headers["content-length"] == "15"


def test_malformed_json_is_answered_and_the_connection_lives_on(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    for body, expected in ((b"{", 400), (chat("echo"), 200), (b"[]", 400), (chat("echo"), 200)):
        connection.request("POST", "/v1/chat/completions", body)
        response = connection.getresponse()
        assert response.status == expected
        response.read()
    connection.close()


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_over_the_limit_is_refused(url: str, is_chunked: bool) -> None:
    body = chat("echo", padding="x" * 2_000_000)
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    sent: Any = (body[i : i + 9000] for i in range(0, len(body), 9000)) if is_chunked else body
    connection.request("POST", "/v1/chat/completions", sent, encode_chunked=is_chunked)
    response = connection.getresponse()
    assert response.status == 413
    assert error_of(response.read())["code"] == "request_too_large"
    connection.close()
    assert call(url, "POST", "/v1/chat/completions", chat("echo"))[0] == 200


def test_a_defect_of_an_upstream_is_its_failure_and_tells_no_secrets(url: str) -> None:
    status, _, body = call(url, "POST", "/v1/chat/completions", chat("faulty"))
    streamed = call(url, "POST", "/v1/chat/completions", chat("half", stream=True))
    assert (status, error_of(body)["type"]) == (502, "api_error")
    last = streamed[2].split(b"\n\n")[-2]
    assert error_of(last.removeprefix(b"data: "))["type"] == "api_error"
    assert b"[DONE]" not in streamed[2]
    assert b"secret" not in body + streamed[2]
    assert call(url, "POST", "/v1/chat/completions", chat("echo"))[0] == 200


def test_a_defect_of_ours_is_a_server_error_that_tells_no_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(FakeRouter):
        def route(self, prompt: str, *, rule: str | None = None, seed: int = 0) -> Decision:
            raise KeyError("a secret of the house")

    upstreams = {"echo": as_upstream(echo("echo"))}
    with serving(gateway_of(upstreams, Broken("echo", "echo"))) as url:
        with caplog.at_level(logging.CRITICAL):
            status, _, body = call(url, "POST", "/v1/chat/completions", chat("auto"))
        assert (status, error_of(body)["code"]) == (500, "internal_error")
        assert b"secret" not in body
        assert call(url, "POST", "/v1/chat/completions", chat("echo"))[0] == 200


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", f"Bearer {KEY} ", "Bearer wrong", KEY, "Basic YTpi"]
)
def test_only_the_right_key_opens(locked_url: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    if authorization == f"Bearer {KEY} ":
        headers["authorization"] = f"Bearer {KEY}x"
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/models"), ("GET", "/else")):
        status, found, body = call(locked_url, method, path, chat("echo"), headers)
        assert (status, error_of(body)["code"]) == (401, "invalid_api_key")
        assert error_of(body)["type"] == "authentication_error"
        assert found["www-authenticate"] == "Bearer"
    assert call(locked_url, "GET", "/health", headers=headers)[0] == 200


def test_the_right_key_opens(locked_url: str) -> None:
    client = openai.OpenAI(base_url=f"{locked_url}/v1", api_key=KEY)
    answer = client.chat.completions.create(model="echo", messages=[{**HELLO}])  # type: ignore[misc]
    assert answer.choices[0].message.content == "echo: hello"


def test_an_expert_that_cannot_start_fails_the_lifespan() -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    gateway = gateway_of({"faulty": Faulty(fails_to_start=True)})
    asyncio.run(gateway({"type": "lifespan"}, receive, send))
    assert sent == [{"type": "lifespan.startup.failed", "message": "the model file is missing"}]


def test_only_http_is_spoken() -> None:
    gateway = gateway_of({"echo": as_upstream(echo("echo"))})
    with pytest.raises(ValueError, match="expected HTTP, got 'websocket'"):
        asyncio.run(gateway({"type": "websocket"}, None, None))  # type: ignore[arg-type]


def test_a_failure_after_routing_says_who_failed(url: str) -> None:
    status, headers, _ = call(url, "POST", "/v1/chat/completions", chat("faulty"))
    assert (status, headers["x-crossroads-model"]) == (502, "faulty")


def test_missing_identity_of_an_answer_is_filled_in() -> None:
    @dataclass(eq=False)
    class Bare(Faulty):
        async def complete(self, order: Order) -> Body:
            return {"choices": completion("hi", model="x")["choices"]}

    with serving(gateway_of({"bare": Bare()})) as url:
        answer = json.loads(call(url, "POST", "/v1/chat/completions", chat("bare"))[2])
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", "bare")
