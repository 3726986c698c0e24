"""The adapters' server over real sockets, asked by OpenAI's own client."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import openai
import pytest
import uvicorn

from crossroads.adapters.routers import build_router
from crossroads.adapters.serving.app import MOST_BYTES, build_app
from crossroads.adapters.serving.engine import Engine
from crossroads.adapters.serving.wishes import RefusedError, read_wish
from crossroads.gateway.server import bind, url_of
from tests.adapters.saved import bank, base_model
from tests.adapters.serving.held import Held

PROMPT = "a b c"


@contextmanager
def served(engine: Engine) -> Iterator[str]:
    """Serve an engine on a free port and yield its address; close it afterwards."""
    listener = bind("127.0.0.1", 0)
    ready = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            ready.set()

    server = Server(uvicorn.Config(build_app(engine), log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert ready.wait(60)
    try:
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
        engine.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(Engine(base_model(), bank(), build_router("phatgoose"), name="mine")) as found:
        yield found


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_models_are_listed(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["mine", "mine:base", "mine:letters", "mine:words", "mine:lines"]


def test_an_answer_has_usage_and_tells_its_adapters(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="mine", messages=[{"role": "user", "content": PROMPT}], max_tokens=4
    )
    answer = raw.parse()
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content
    assert answer.usage is not None and answer.usage.total_tokens == 3 + 4
    told = json.loads(raw.text)["crossroads"]
    assert told["router"] == "phatgoose"
    assert raw.headers["x-crossroads-adapter"] == next(iter(told["adapters"]))
    assert sum(told["adapters"].values()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("model", ["mine", "mine:base", "mine:words"])
def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI, model: str) -> None:
    whole = client.completions.create(model=model, prompt=PROMPT, max_tokens=6)
    stream = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=6, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    said = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].text
    assert len(chunks) > 3  # in pieces, not at once
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


def test_a_chat_stream_begins_with_a_role_and_ends_with_shares(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="mine", messages=[{"role": "user", "content": PROMPT}], max_tokens=3, stream=True
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["crossroads"]["adapters"]


@pytest.mark.parametrize(
    ("model", "router"), [("mine", "phatgoose"), ("mine:base", None), ("mine:words", "named")]
)
def test_an_answer_tells_the_router_that_decided(
    client: openai.OpenAI, model: str, router: str | None
) -> None:
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=1)
    assert answer.model_extra is not None
    assert answer.model_extra["crossroads"]["router"] == router
    stream = client.completions.create(model=model, prompt=PROMPT, max_tokens=1, stream=True)
    last = [*stream][-1]
    assert last.model_extra is not None and last.model_extra["crossroads"]["router"] == router


def test_a_chat_stream_without_text_has_a_role_all_the_same(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "mine",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 1,
    }
    whole = client.chat.completions.create(**asked)
    said = whole.choices[0].message.content
    (chunk,) = client.chat.completions.create(**asked, stop=[said.strip()[0], " "], stream=True)
    assert chunk.choices[0].delta.role == "assistant" and chunk.choices[0].delta.content == ""
    assert chunk.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"model": "other"}, 404, "model 'other' does not exist"),
        ({"n": 3}, 400, "n: this server does not have it"),
        ({"prompt": "a " * 70}, 400, "70 tokens, the model reads 64; shorten"),
    ],
)
def test_refusals_have_openais_shape(
    client: openai.OpenAI, change: dict[str, Any], status: int, message: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=message) as found:
        client.completions.create(**{"model": "mine", "prompt": PROMPT, **change})
    assert found.value.status_code == status
    assert found.value.type == "invalid_request_error"


def test_a_refusal_within_a_stream_is_an_event(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="mine", prompt="a " * 70, stream=True)
    with pytest.raises(openai.APIError, match="70 tokens, the model reads 64"):
        list(stream)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/completions", b"{", 400, "no JSON"),
        ("/v1/completions", b"[" * 100_000, 400, "no JSON"),
        ("/v1/completions", b" " * (MOST_BYTES + 1), 413, "more than"),
        ("/v1/embeddings", b"{}", 404, "no such path"),
    ],
)
def test_wrong_requests_are_told_why(
    url: str, path: str, body: bytes, status: int, message: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as found:
        urllib.request.urlopen(urllib.request.Request(url + path, data=body), timeout=60)
    assert found.value.code == status
    assert message in json.load(found.value)["error"]["message"]


def test_health_names_the_router(url: str) -> None:
    with urllib.request.urlopen(f"{url}/health", timeout=60) as response:
        assert json.load(response) == {"status": "ok", "router": "phatgoose"}


def test_a_second_request_waits_and_is_answered_and_health_answers_meanwhile() -> None:
    held = Held(base_model().tokenizer)
    base = replace(base_model(), tokenizer=held)
    engine = Engine(base, bank(), build_router("phatgoose"), name="mine", max_waiting=1)
    with served(engine) as at, ThreadPoolExecutor() as clients:
        client = openai.OpenAI(base_url=f"{at}/v1", api_key="none", max_retries=0)

        def ask() -> str:
            return (
                client.completions.create(model="mine", prompt=PROMPT, max_tokens=4).choices[0].text
            )

        def is_full() -> bool:
            try:
                engine.check(wish)
            except RefusedError:
                return True
            return False

        wish = read_wish({"model": "mine", "prompt": PROMPT}, "text")
        first = clients.submit(ask)
        assert held.has_begun.wait(60)
        second = clients.submit(ask)
        while not is_full():  # until the second stands in line
            assert not second.done()
            held.go_on.wait(0.01)
        for path in ("/health", "/v1/models"):
            with urllib.request.urlopen(f"{at}{path}", timeout=60) as response:
                assert response.status == 200
        with pytest.raises(openai.InternalServerError, match="the line is full") as refused:
            ask()
        assert refused.value.status_code == 503
        assert not first.done() and not second.done()
        held.go_on.set()
        assert first.result(60) == second.result(60) != ""
        client.close()
