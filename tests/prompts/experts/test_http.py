from __future__ import annotations

import asyncio
from typing import Any

import pytest

from crossroads.core.errors import InputError
from crossroads.core.http.timeouts import Timeouts
from crossroads.prompts.experts.base import Completion, ExpertError, assemble
from crossroads.prompts.experts.environment import expand
from crossroads.prompts.experts.http import HttpExpert
from crossroads.prompts.experts.registry import build_expert
from crossroads.prompts.pool import ModelCard
from tests.gateway.fake_upstream import TEXT, USAGE, FakeUpstream

REQUEST: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def upstream() -> Any:
    with FakeUpstream() as running:
        yield running


def complete(expert: HttpExpert, **fields: Any) -> Completion:
    async def run() -> Completion:
        await expert.start()
        try:
            return await expert.complete({**REQUEST, **fields})
        finally:
            await expert.close()

    return asyncio.run(run())


def read_stream(expert: HttpExpert, request: dict[str, Any]) -> list[Any]:
    async def run() -> list[Any]:
        await expert.start()
        try:
            return [chunk async for chunk in expert.stream(request)]
        finally:
            await expert.close()

    return asyncio.run(run())


def expert(upstream: FakeUpstream, model: str, **card: Any) -> HttpExpert:
    fields = {"endpoint": upstream.url, "upstream_model": model, **card}
    return HttpExpert(ModelCard(name="m", **fields))


def test_an_answer_comes_as_the_endpoint_gave_it(upstream: FakeUpstream) -> None:
    answer = complete(expert(upstream, "ok"))
    assert answer["choices"][0]["message"]["content"] == TEXT
    assert answer["usage"] == USAGE


def test_the_key_is_read_from_the_environment_at_start(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = expert(upstream, "ok", api_key="${FAKE_KEY}")
    monkeypatch.setenv("FAKE_KEY", "k-123")
    complete(asked)
    assert upstream.requests[-1][0]["Authorization"] == "Bearer k-123"
    assert "k-123" not in repr(asked)
    monkeypatch.delenv("FAKE_KEY")
    with pytest.raises(InputError, match=r"api_key of model 'm': .* FAKE_KEY is not set"):
        complete(asked)


def test_references_inside_a_text_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_1", "x")
    assert expand("${A_1}-${A_1}-$A_1-${}", where="here") == "x-x-$A_1-${}"


def test_a_connection_is_used_again(upstream: FakeUpstream) -> None:
    async def run() -> int:
        asked = expert(upstream, "ok")
        await asked.start()
        for _ in range(3):
            await asked.complete(REQUEST)
        assert asked._pool is not None
        num_opened = asked._pool.num_opened
        await asked.close()
        return num_opened

    assert asyncio.run(run()) == 1


def test_a_stream_is_a_whole_answer_in_chunks(upstream: FakeUpstream) -> None:
    request = {**REQUEST, "stream": True, "stream_options": {"include_usage": True}}
    chunks = read_stream(expert(upstream, "ok"), request)
    assert assemble(chunks, model="m")["choices"][0]["message"]["content"] == TEXT
    assert chunks[-1]["usage"] == USAGE
    sent = upstream.requests[-1][1]
    assert not {"stream", "stream_options"} & sent.keys()
    with pytest.raises(ExpertError, match="status 500"):
        read_stream(expert(upstream, "status-500"), request)


def test_the_whole_call_ends_at_its_deadline(upstream: FakeUpstream) -> None:
    asked = expert(upstream, "slow-30", timeouts={"total": 0.5, "idle": 5})
    with pytest.raises(ExpertError, match=r"no whole answer within 0\.5 s") as late:
        complete(asked)
    assert late.value.status == 504


def test_an_answer_over_the_limit_is_refused(upstream: FakeUpstream) -> None:
    with pytest.raises(ExpertError, match="of more than 50 bytes") as refused:
        complete(HttpExpert(ModelCard(name="m", endpoint=upstream.url), max_answer_bytes=50))
    assert refused.value.code == "upstream_invalid"


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("cut", 502, "upstream_cut"),
        ("html", 502, "upstream_invalid"),
        ("error", 502, "some_code"),
        ("error-401", 502, "upstream_refused"),
        ("hangup", 503, "upstream_unavailable"),
        ("status-401", 502, "upstream_refused"),
        ("status-404", 404, "some_code"),
        ("status-429", 429, "some_code"),
        ("status-503", 503, "some_code"),
        ("status-500", 502, "upstream_error"),
    ],
)
def test_every_way_to_fail_has_its_status_and_code(
    upstream: FakeUpstream, model: str, status: int, code: str
) -> None:
    with pytest.raises(ExpertError) as failed:
        complete(expert(upstream, model))
    assert (failed.value.status, failed.value.code) == (status, code)
    assert failed.value.retry_after == (7.0 if model in ("status-429", "status-503") else None)


def test_a_card_says_what_is_sent_and_how_long_to_wait(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TEAM", "routing")
    card = ModelCard(
        name="m",
        endpoint=upstream.url,
        upstream_model="slow-0.1",
        api_key="not-sent",
        headers={"X-Team": "${A_TEAM}", "Authorization": "Own abc"},
        timeouts={"total": 9},
    )
    asked = build_expert(card, timeouts=Timeouts(total=0.05, idle=3))
    assert isinstance(asked, HttpExpert)
    assert (asked.timeouts.total, asked.timeouts.idle) == (9, 3)
    complete(asked)
    headers = {name.lower(): value for name, value in upstream.requests[-1][0].items()}
    assert (headers["x-team"], headers["authorization"]) == ("routing", "Own abc")
    assert "routing" not in repr(asked)


def test_a_proxy_is_asked_for_the_whole_url(upstream: FakeUpstream) -> None:
    card = ModelCard(
        name="m",
        endpoint="http://models.invalid/v1",
        upstream_model="ok",
        proxy=upstream.url.removesuffix("/v1"),
    )
    assert complete(HttpExpert(card))["choices"][0]["message"]["content"] == TEXT
    assert upstream.requests[-1][0]["Host"] == "models.invalid"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"proxy": "socks5://127.0.0.1:9"}, "proxy is not http://host:port"),
        ({"proxy": "${NOT_SET_ANYWHERE}"}, "proxy of model 'm': .*NOT_SET_ANYWHERE is not set"),
        (
            {"endpoint": "https://127.0.0.1:9/v1", "ca_file": "none.pem"},
            "ca_file 'none.pem': no such file; give a PEM file",
        ),
        ({"headers": {"x-a": "b\nc"}}, "header x-a: expected printable ASCII on one line"),
        ({"headers": {"Content-Length": "2"}}, "'Content-Length' cannot be set; leave it out"),
    ],
)
def test_what_a_call_could_not_use_is_found_at_the_start(
    upstream: FakeUpstream, fields: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        complete(expert(upstream, "ok", **fields))


def test_errors_name_the_host_and_not_the_path(upstream: FakeUpstream) -> None:
    with pytest.raises(ExpertError) as failed:
        complete(expert(upstream, "status-500"))
    assert str(failed.value).startswith("model 'm' at 127.0.0.1:")
    assert "/v1" not in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_password_in_an_endpoint_is_refused_and_not_shown() -> None:
    with pytest.raises(InputError, match="use api_key or headers") as refused:
        HttpExpert(ModelCard(name="m", endpoint="http://user:secret-word@host/v1"))
    assert "secret-word" not in str(refused.value)


def test_an_unwritable_request_is_refused(upstream: FakeUpstream) -> None:
    nested: list[Any] = []
    for _ in range(300):
        nested = [nested]
    with pytest.raises(ExpertError, match="cannot be passed on") as refused:
        complete(expert(upstream, "ok"), messages=nested)
    assert refused.value.status == 400


def test_cancelling_a_call_ends_it_at_the_endpoint() -> None:
    async def run() -> None:
        asked = expert(upstream, "slow-30")
        await asked.start()
        task = asyncio.create_task(asked.complete(REQUEST))
        while not upstream.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asked.close()

    with FakeUpstream() as upstream:
        asyncio.run(run())
        assert upstream.abandoned.wait(5)


@pytest.mark.parametrize("name", ["connect", "first_byte", "idle", "total"])
@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_timeout_is_a_positive_number(name: str, seconds: float) -> None:
    with pytest.raises(InputError, match=f"timeout {name}"):
        Timeouts(**{name: seconds})
