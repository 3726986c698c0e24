"""What both HTTP implementations must do alike, and what only ours does."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossroads.gateway.call import Call
from crossroads.gateway.exchange import Exchange
from crossroads.gateway.serving import FrontSettings, http_protocol
from crossroads.gateway.serving.cycle import Cycle
from crossroads.prompts.experts.tools import ToolExpert
from tests.gateway.http_front import LIMIT, App, front, read_all, statuses, talk
from tests.gateway.serving import as_upstream, gateway_of

GET = b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nhost: h\r\n"


@pytest.fixture(scope="module", params=["standard", "fast"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def port(kind: str) -> Iterator[int]:
    with front(kind, App()) as running:
        yield running


@pytest.fixture(scope="module")
def fast() -> Iterator[int]:
    with front("fast", App()) as running:
        yield running


def test_requests_sent_at_once_are_answered_in_order(port: int) -> None:
    paths = [b"/%d" % n for n in range(50)]
    requests = b"".join(b"GET %b HTTP/1.1\r\nhost: h\r\n\r\n" % path for path in paths)
    answer = talk(port, requests + LAST)
    assert statuses(answer) == [200] * 51
    places = [answer.index(b"GET %b " % path) for path in paths]
    assert places == sorted(places)


def test_a_stream_before_another_request_is_whole(port: int) -> None:
    answer = talk(port, b"GET /stream HTTP/1.1\r\nhost: h\r\n\r\n" + LAST)
    stream, _, last = answer.partition(b"0\r\n\r\n")
    assert stream.count(b"data: ") == 6
    assert statuses(last) == [200]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(chunks=st.lists(st.binary(min_size=1, max_size=200), max_size=8), cut=st.integers(1, 60))
def test_a_chunked_body_arrives_whole_however_it_is_cut(
    port: int, chunks: list[bytes], cut: int
) -> None:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    head = POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    data = head + body
    answer = talk(port, *[data[n : n + cut * 8] for n in range(0, len(data), cut * 8)])
    assert answer.endswith(b"POST /echo " + b"".join(chunks))


def test_trailers_of_a_chunked_body_are_no_headers(port: int) -> None:
    head = POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = talk(port, head + b"3\r\nabc\r\n0\r\nhost: other\r\nx: y\r\n\r\n")
    assert answer.endswith(b"POST /echo abc")


def test_a_request_may_come_byte_by_byte(port: int) -> None:
    data = POST + b"connection: close\r\ncontent-length: 3\r\n\r\nabc"
    answer = talk(port, *[data[n : n + 1] for n in range(len(data))], pause=0.0005)
    assert answer.endswith(b"POST /echo abc")


def test_one_connection_serves_many_requests(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.connect()
    used = connection.sock
    for number in range(20):
        connection.request("POST", "/echo", json.dumps(number))
        assert connection.getresponse().read() == b"POST /echo %d" % number
    assert connection.sock is used
    connection.close()


def test_a_second_request_with_two_hosts_is_refused_however_right_each_of_them_is(
    port: int,
) -> None:
    again = b"GET /b HTTP/1.1\r\nhost: h\r\nhost: h\r\n\r\n"
    answer = talk(port, GET, again, pause=0.05)
    assert statuses(answer) == [200, 400]
    assert b"Expected one Host header." in answer


def test_a_client_that_expects_100_gets_it_before_it_sends(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        head = b"expect: 100-continue\r\ncontent-length: 3\r\nconnection: close\r\n\r\n"
        connection.sendall(POST + head)
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert read_all(connection).endswith(b"POST /echo abc")


def test_an_absolute_target_is_its_path(port: int) -> None:
    answer = talk(port, LAST.replace(b"/last", b"http://other.example/x%20y?q=1"))
    assert answer.endswith(b"GET /x y ")


def test_an_answer_to_head_has_no_body(port: int) -> None:
    answer = talk(port, LAST.replace(b"GET", b"HEAD"))
    assert statuses(answer) == [200]
    assert b"content-length: 11\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_a_client_that_offers_http2_is_served_in_http1(port: int) -> None:
    offer = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
    request = POST + offer + b"content-length: 3\r\n\r\nabc"
    answer = talk(port, request + LAST)
    assert statuses(answer) == [200, 200]
    assert b"POST /echo abc" in answer


def test_a_client_that_leaves_is_noticed_at_once(kind: str) -> None:
    app = App()
    with front(kind, app) as port:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /wait HTTP/1.1\r\nhost: h\r\n\r\n")
            time.sleep(0.05)
        assert app.is_gone.wait(1)


def test_a_client_that_leaves_in_its_body_is_noticed_at_once(kind: str) -> None:
    app = App()
    with front(kind, app) as port:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(POST + b"content-length: 10\r\n\r\nabc")
            time.sleep(0.05)
        assert app.is_gone.wait(1)


def test_a_slow_client_holds_the_application_back(kind: str) -> None:
    app = App()
    with front(kind, app) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /endless HTTP/1.1\r\nhost: h\r\n\r\n")
        time.sleep(0.3)
        early = app.num_sent
        time.sleep(0.2)
        assert app.num_sent == early, "the server reads for a client that does not"
        assert connection.recv(1 << 20)


def test_a_failure_of_the_application_is_a_500(port: int) -> None:
    answer = talk(port, b"GET /boom HTTP/1.1\r\nhost: h\r\n\r\n")
    assert statuses(answer) == [500]


def test_a_response_that_breaks_does_not_look_whole(port: int) -> None:
    answer = talk(port, b"GET /cut HTTP/1.1\r\nhost: h\r\n\r\n")
    assert b"part" in answer
    assert not answer.endswith(b"0\r\n\r\n")


def test_streams_in_flight_are_finished_when_the_server_stops(kind: str) -> None:
    answers: list[bytes] = []
    with front(kind, App()) as port:
        request = b"GET /stream HTTP/1.1\r\nhost: h\r\n\r\n"
        thread = threading.Thread(target=lambda: answers.append(talk(port, request)))
        thread.start()
        time.sleep(0.05)
    thread.join()
    assert answers[0].endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_idle_connections_are_closed_when_the_server_stops(kind: str) -> None:
    with front(kind, App()) as port:
        idle = socket.create_connection(("127.0.0.1", port), timeout=5)
        idle.sendall(GET)
        time.sleep(0.05)
    assert statuses(read_all(idle)) == [200]
    idle.close()


def test_http_1_0_is_not_sent_chunks(fast: int) -> None:
    answer = talk(fast, b"GET /stream HTTP/1.0\r\n\r\n")
    assert b"transfer-encoding" not in answer
    assert answer.endswith(b"data: [DONE]\n\n")


def test_a_response_carries_the_date_and_says_when_it_is_the_last(fast: int) -> None:
    head, _, _ = talk(fast, LAST).partition(b"\r\n\r\n")
    assert b"\r\ndate: " in head
    assert b"\r\nconnection: close" in head


def test_two_hundred_clients_at_once_are_all_answered(fast: int) -> None:
    sockets = [socket.create_connection(("127.0.0.1", fast), timeout=5) for _ in range(200)]
    for connection in sockets:
        connection.sendall(LAST)
    answers = [read_all(connection) for connection in sockets]
    for connection in sockets:
        connection.close()
    assert all(statuses(answer) == [200] for answer in answers)


# --- the gateway itself ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gateway(kind: str) -> Iterator[int]:
    expert = ToolExpert(name="echo", answer=lambda text: text.upper(), refusal="")
    app = gateway_of({"echo": as_upstream(expert)}, body_limit=LIMIT)
    with front(kind, app, lifespan="on") as running:
        yield running


def test_the_official_client_is_served(gateway: int) -> None:
    base = f"http://127.0.0.1:{gateway}/v1"
    asked: Any = {"model": "echo", "messages": [{"role": "user", "content": "hi there"}]}
    with openai.OpenAI(base_url=base, api_key="k", max_retries=0) as client:
        assert client.chat.completions.create(**asked).choices[0].message.content == "HI THERE"
        with client.chat.completions.create(stream=True, **asked) as stream:
            said = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(said) == "HI THERE"


@pytest.mark.parametrize("body", ['{"model": "echo", "stream": %s}', '{"model": "none"}', "broken"])
@pytest.mark.parametrize("stream", ["true", "false"])
def test_what_a_request_held_is_freed_with_its_last_byte(
    gateway: int, body: str, stream: str
) -> None:
    asked = body.replace("{", '{"messages": [{"role": "user", "content": "hi"}], ', 1)
    data = (asked % stream if "%s" in asked else asked).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n" % len(data)
    talk(gateway, head + b"connection: close\r\n\r\n" + data)  # what is remembered ever after
    with _nothing_held():
        for _ in range(20):
            talk(gateway, head + b"connection: close\r\n\r\n" + data)


class Wire:
    """A transport whose client sends nothing by itself."""

    def get_extra_info(self, name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return False

    def _ignore(self, *_: object) -> None: ...

    write = close = pause_reading = resume_reading = _ignore


@pytest.mark.parametrize("sent", [b"{", b"{}" + 2 * (GET.replace(b"/a", b"/freed"))])
def test_what_a_request_held_is_freed_with_its_client(sent: bytes) -> None:
    async def work() -> None:
        state = SimpleNamespace(connections=set(), tasks=set(), default_headers=[])
        config = SimpleNamespace(loaded=True, loaded_app=App())
        protocol = http_protocol("fast", FrontSettings())(config, state, {})  # type: ignore
        protocol.connection_made(Wire())
        head = POST.replace(b"/echo", b"/freed") + b"content-length: 2\r\n\r\n"
        protocol.data_received(head + sent)
        assert len(_cycles("/freed")) == (1 if sent == b"{" else 3)
        protocol.connection_lost(None)
        while state.tasks:
            await asyncio.sleep(0)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(work())
        assert _cycles("/freed") == []
    finally:
        gc.enable()


def _cycles(path: str) -> list[Cycle]:
    alive = [thing for thing in gc.get_objects() if type(thing) is Cycle]
    return [cycle for cycle in alive if cycle.scope["path"] == path]


@contextmanager
def _nothing_held() -> Iterator[None]:
    """Check that no object of a request outlives the block, without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        before = _held()
        yield
        deadline = time.monotonic() + 5
        while _held() > before and time.monotonic() < deadline:
            time.sleep(0.02)  # the last one may not be over yet
        assert _held() <= before
    finally:
        gc.enable()


def _held() -> int:
    """Return how many objects of requests are alive."""
    return sum(type(thing) in (Cycle, Exchange, Call) for thing in gc.get_objects())


def test_a_body_over_the_gateway_s_limit_is_a_413_and_read_no_further(gateway: int) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n"
    answer = talk(gateway, head % (10 * LIMIT) + b"x" * LIMIT)
    assert statuses(answer) == [413]
    assert b"invalid_request_error" in answer
    chunked = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
    block = b"%x\r\n%b\r\n" % (LIMIT, b"x" * LIMIT)
    assert statuses(talk(gateway, chunked + block + block)) == [413]
