"""What a client sees when an upstream fails, and that the gateway serves on after each failure."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import openai
import pytest

from crossroads.core.http.timeouts import Timeouts
from crossroads.gateway.upstreams import build_upstreams
from crossroads.prompts.pool import ModelCard
from tests.gateway.fake_upstream import TEXT, FakeUpstream
from tests.gateway.serving import FakeRouter, gateway_of, serving

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=10)


@pytest.fixture(autouse=True)
def _serves_on(client: openai.OpenAI) -> Iterator[None]:
    """Whatever a test did, the next request is answered."""
    yield
    answer = client.chat.completions.create(model="ok", messages=HELLO)
    assert answer.choices[0].message.content == TEXT


async def exchange(url: str, model: str, *, stream: bool) -> tuple[int, dict[str, str], bytes]:
    body = {"model": model, "messages": HELLO, "stream": stream}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=body) as response,
    ):
        headers = {name.lower(): value for name, value in response.headers.items()}
        return response.status, headers, await response.read()


def ask(url: str, model: str, *, stream: bool = False) -> tuple[int, dict[str, str], bytes]:
    return asyncio.run(exchange(url, model, stream=stream))


# model, status, code: the same whether a stream was asked for or not
BEFORE_THE_FIRST_BYTE = [
    ("down", 503, "upstream_unavailable"),
    ("hangup", 503, "upstream_unavailable"),
    ("slow-1", 504, "upstream_timeout"),
    ("html", 502, "upstream_invalid"),
    ("status-302", 502, "upstream_error"),
    ("status-400", 400, "some_code"),
    ("status-401", 502, "upstream_refused"),
    ("status-403", 502, "upstream_refused"),
    ("status-404", 404, "some_code"),
    ("status-429", 429, "some_code"),
    ("status-500", 502, "upstream_error"),
    ("status-503", 503, "some_code"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("model", "status", "code"), BEFORE_THE_FIRST_BYTE)
def test_a_failure_before_the_first_byte_is_a_status(
    url: str, model: str, status: int, code: str, stream: bool
) -> None:
    got, headers, body = ask(url, model, stream=stream)
    error = json.loads(body)["error"]
    assert (got, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert model in error["message"]
    assert "\n" not in error["message"]
    assert headers["content-type"] == "application/json"
    assert "upstream-key" not in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("model", "status", "code"), BEFORE_THE_FIRST_BYTE)
def test_a_failure_after_routing_says_who_failed(
    url: str, model: str, status: int, code: str, stream: bool
) -> None:
    got, headers, _ = ask(url, model, stream=stream)
    assert (got, headers["x-crossroads-model"]) == (status, model), code
    assert headers["x-crossroads-policy"] == "direct"


def test_a_failure_after_a_decision_carries_the_decision(upstream: FakeUpstream) -> None:
    card = ModelCard(name="m", endpoint=upstream.url, upstream_model="status-429")
    upstreams = build_upstreams([card], timeouts=Timeouts())
    with serving(gateway_of(upstreams, FakeRouter("m", "m"))) as url:
        status, headers, _ = ask(url, "auto")
    assert status == 429
    assert headers["retry-after"] == "7"
    assert headers["x-crossroads-model"] == "m"
    assert headers["x-crossroads-policy"] == "auto fake argmax"
    assert headers["x-crossroads-reason"].startswith("m has the highest estimated quality")
    assert headers["x-crossroads-decision-id"].startswith("dec_")


def test_a_failure_before_routing_names_no_model(url: str) -> None:
    status, headers, _ = ask(url, "no-such-model")
    assert status == 404
    assert not [name for name in headers if name.startswith("x-crossroads-")]


@pytest.mark.parametrize("model", ["status-401", "status-403", "error-401"])
def test_nothing_an_upstream_says_about_our_key_is_relayed(url: str, model: str) -> None:
    status, _, body = ask(url, model)
    error = json.loads(body)["error"]
    message = error.pop("message")
    assert status == 502
    assert error == {"type": "api_error", "code": "upstream_refused", "param": None}
    assert message.startswith(f"model '{model}' at 127.0.0.1:")
    assert message.endswith(
        ": the upstream refused the gateway's credentials; check api_key in the pool"
    )
    assert "no more tokens" not in message


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("empty", "upstream_empty"),
        ("onlydone", "upstream_empty"),
        ("cut-0", "upstream_cut"),
        ("stall-0", "upstream_timeout"),
        ("malformed-0", "upstream_invalid"),
    ],
)
def test_a_stream_without_a_first_chunk_is_a_status(url: str, model: str, code: str) -> None:
    status, _, body = ask(url, model, stream=True)
    assert status == (504 if code == "upstream_timeout" else 502)
    assert json.loads(body)["error"]["code"] == code


@pytest.mark.parametrize(
    ("model", "code", "num_chunks"),
    [
        ("cut-3", "upstream_cut", 3),
        ("half", "upstream_cut", 3),
        ("nofinish", "upstream_cut", None),
        ("stall-3", "upstream_timeout", 3),
        ("malformed-2", "upstream_invalid", 2),
        ("notchunk", "upstream_invalid", 2),
        ("midway", "some_code", 3),
    ],
)
def test_a_failure_in_a_stream_is_an_error_event_without_done(
    url: str, model: str, code: str, num_chunks: int | None
) -> None:
    status, _, body = ask(url, model, stream=True)
    assert status == 200
    *chunks, last = [
        json.loads(event.removeprefix("data: ")) for event in body.decode().split("\n\n")[:-1]
    ]
    assert last["error"]["code"] == code
    assert all("choices" in chunk for chunk in chunks)
    assert num_chunks in (None, len(chunks))
    assert b"[DONE]" not in body


@pytest.mark.parametrize("model", ["cut-3", "nofinish", "stall-3", "malformed-2"])
def test_the_official_client_raises_on_a_broken_stream(client: openai.OpenAI, model: str) -> None:
    stream = client.chat.completions.create(model=model, messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="model"):
        list(stream)


@pytest.mark.parametrize("model", ["cut", "error"])
def test_an_answer_that_is_none_is_a_bad_gateway(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(model=model, messages=HELLO)
    assert failed.value.status_code == 502


@pytest.mark.parametrize(
    "model", ["nodone", "notlast", "lingers", "bytes", "split", "crlf", "comments", "whole"]
)
def test_an_unusual_but_whole_stream_arrives_whole(url: str, model: str) -> None:
    status, _, body = ask(url, model, stream=True)
    assert status == 200
    *events, done = body.decode().split("\n\n")[:-1]
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks) == TEXT
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_request_nested_too_deep_to_pass_on_is_the_clients_mistake(
    client: openai.OpenAI,
) -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    with pytest.raises(openai.BadRequestError, match="cannot be passed on"):
        client.chat.completions.create(model="ok", messages=HELLO, extra_body={"deep": deep})


def test_a_limit_of_the_upstream_says_when_to_come_back(client: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as limited:
        client.chat.completions.create(model="status-429", messages=HELLO)
    assert limited.value.response.headers["retry-after"] == "7"
    assert limited.value.type == "some_type"
    assert limited.value.param == "prompt"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_upstreams_work(stream: bool) -> None:
    with FakeUpstream() as upstream:
        behaviour = "trickle-3" if stream else "slow-30"
        card = ModelCard(name="m", endpoint=upstream.url, upstream_model=behaviour)
        upstreams = build_upstreams([card], timeouts=Timeouts())
        with serving(gateway_of(upstreams)) as url:
            host, port = url.removeprefix("http://").split(":")
            body = json.dumps({"model": "m", "messages": HELLO, "stream": stream}).encode()
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(
                    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s"
                    % (len(body), body)
                )
                while not upstream.requests:
                    time.sleep(0.01)
                if stream:
                    assert b"200 OK" in connection.recv(1000)
            assert upstream.abandoned.wait(5)


def test_a_slow_reader_gets_everything_and_holds_the_upstream_back(
    url: str, upstream: FakeUpstream
) -> None:
    async def read_slowly() -> tuple[int, int]:
        body = {"model": "long-4000", "messages": HELLO, "stream": True}
        async with (
            aiohttp.ClientSession(read_bufsize=1024) as session,
            session.post(f"{url}/v1/chat/completions", json=body) as response,
        ):
            await asyncio.sleep(0.3)
            return upstream.num_sent, (await response.read()).count(b"x" * 10_000)

    upstream.num_sent = 0
    sent_before_reading, received = asyncio.run(read_slowly())
    assert received == 4000
    assert 0 < sent_before_reading < 4000  # the rest of 40 MB waited for the reader


def test_sixty_four_clients_at_once_each_get_their_own_answer(url: str) -> None:
    async def ask_one(session: aiohttp.ClientSession, number: int) -> bool:
        content = f"question {number}" if number % 2 else "question"
        body = {"model": "auto", "messages": [{"role": "user", "content": content}]}
        async with session.post(f"{url}/chat/completions", json=body) as response:
            answer = await response.json()
            return bool(answer["model"] == ("ok" if number % 2 else "usage"))

    async def ask_all() -> list[bool]:
        async with aiohttp.ClientSession() as session:
            return await asyncio.gather(*(ask_one(session, number) for number in range(64)))

    assert all(asyncio.run(ask_all()))
