"""A replica answers like any OpenAI endpoint, on a real Ray cluster where Ray Serve is there."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from crossroads.core.errors import MissingExtraError
from crossroads.gateway.ray_serve import ChatReplica, expert_app
from crossroads.prompts.experts.base import (
    Chunk,
    Completion,
    Expert,
    ExpertError,
    Request,
    chunks_of,
    completion,
    last_user_text,
)
from tests.gateway.http_front import front, talk


def has_ray_serve() -> bool:
    return all(importlib.util.find_spec(name) for name in ("ray", "grpc", "fastapi"))


class Echo:
    """Says what it is told; fails on ``fail``, and in the middle on ``break``."""

    name = "echo"
    num_started = 0

    async def start(self) -> None:
        self.num_started += 1

    async def complete(self, request: Request) -> Completion:
        text = last_user_text(request["messages"])
        if text == "fail":
            raise ExpertError("the model is out of memory", status=503)
        return completion(text, model=self.name)

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        answer = await self.complete(request)
        for chunk in chunks_of(answer, include_usage=False):
            yield chunk
            if last_user_text(request["messages"]) == "break":
                raise ExpertError("the model stopped")

    async def close(self) -> None:
        return


def ask(expert: Expert, text: str, path: str = "/v1/chat/completions", **fields: Any) -> bytes:
    import json

    replica = ChatReplica(lambda: expert)

    async def answer(request: HttpRequest) -> Response:
        return await replica(request)

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    body = json.dumps({"messages": [{"role": "user", "content": text}], **fields}).encode()
    if text == "{":
        body = b"{"
    head = b"POST %b HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    with front("standard", app) as port:
        return talk(port, head % (path.encode(), len(body)) + body)


def test_a_replica_answers_in_the_form_of_openai() -> None:
    expert = Echo()
    answer = ask(expert, "hello")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"content":"hello"' in answer
    assert expert.num_started == 1


def test_a_replica_streams_to_its_done() -> None:
    answer = ask(Echo(), "hello", stream=True)
    assert b"text/event-stream" in answer
    assert b'"content":"hello"' in answer
    assert b"data: [DONE]" in answer


def test_a_stream_that_breaks_ends_with_an_error_and_without_done() -> None:
    answer = ask(Echo(), "break", stream=True)
    assert b"the model stopped" in answer
    assert b"[DONE]" not in answer


@pytest.mark.parametrize("is_stream", [True, False])
def test_an_expert_that_fails_at_once_is_a_status(is_stream: bool) -> None:
    answer = ask(Echo(), "fail", stream=is_stream)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"out of memory" in answer


def test_a_replica_says_what_is_wrong_with_a_request() -> None:
    assert ask(Echo(), "{").startswith(b"HTTP/1.1 400 ")
    assert ask(Echo(), "x", messages="no").startswith(b"HTTP/1.1 400 ")
    assert ask(Echo(), "x", path="/v1/else").startswith(b"HTTP/1.1 404 ")
    assert b'"id":"echo"' in ask(Echo(), "x", path="/v1/models")


@pytest.mark.skipif(has_ray_serve(), reason="Ray Serve is installed")
def test_without_ray_the_remedy_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"crossroads\[ray\]"):
        expert_app(Echo)


@pytest.mark.slow
@pytest.mark.skipif(not has_ray_serve(), reason="Ray Serve is not installed: ray[serve]")
@pytest.mark.filterwarnings("ignore")  # Ray and FastAPI have some of their own
def test_two_replicas_answer_on_a_ray_cluster() -> None:
    import json
    import urllib.request

    import ray
    from ray import serve

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": 18_123})
        serve.run(expert_app(Echo, replicas=2, cpus=0.5), route_prefix="/small")
        body = json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode()
        url = "http://127.0.0.1:18123/small/v1/chat/completions"
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as answer:
            assert json.load(answer)["choices"][0]["message"]["content"] == "hi"
    finally:
        serve.shutdown()
        ray.shutdown()
