"""Both HTTP implementations against clients that mean harm, on real sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.http_front import ENDLESS, LIMIT, App, front, is_served, read_all, statuses, talk

HEAD = b"POST /echo HTTP/1.1\r\nhost: h\r\n"
CLOSE = b"connection: close\r\n"
SHORT = {"header_s": 0.3, "body_s": 0.3, "keep_alive_s": 0.3, "write_s": 0.3}


@pytest.fixture(scope="module", params=["standard", "fast"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def port(kind: str) -> Iterator[int]:
    with front(kind, App()) as running:
        yield running


@pytest.fixture(scope="module")
def hasty(kind: str) -> Iterator[int]:
    """A server that waits for nobody longer than 0.3 s, and takes few connections."""
    with front(kind, App(), **SHORT, max_connections=4) as running:
        yield running


# --- time -----------------------------------------------------------------------------------------


def test_a_client_that_says_nothing_is_let_go(hasty: int) -> None:
    assert talk(hasty, b"") == b""
    assert is_served(hasty)


def test_a_slow_loris_in_the_headers_is_refused_in_time(hasty: int) -> None:
    drip = [b"x-%d: y\r\n" % n for n in range(6)]
    answer = talk(hasty, b"GET / HTTP/1.1\r\nhost: h\r\n", *drip, pause=0.1)
    assert statuses(answer) == [408]
    assert is_served(hasty)


def test_a_slow_loris_of_empty_lines_is_let_go(hasty: int) -> None:
    assert talk(hasty, *[b"\r\n"] * 6, pause=0.1) == b""
    assert is_served(hasty)


def test_a_slow_body_is_refused_in_time(hasty: int) -> None:
    drip = [b"x"] * 6
    answer = talk(hasty, HEAD + b"content-length: 1000\r\n\r\n", *drip, pause=0.1)
    assert statuses(answer) == [408]
    assert is_served(hasty)


def test_a_body_that_drips_in_chunks_is_refused_in_time(hasty: int) -> None:
    drip = [b"1\r\nx\r\n"] * 6
    answer = talk(hasty, HEAD + b"transfer-encoding: chunked\r\n\r\n", *drip, pause=0.1)
    assert statuses(answer) == [408]
    assert is_served(hasty)


def test_an_idle_connection_is_closed_after_its_keep_alive(hasty: int) -> None:
    answer = talk(hasty, b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n")
    assert statuses(answer) == [200]


def test_a_client_that_does_not_read_is_cut_off(kind: str) -> None:
    app = App()
    with front(kind, app, **SHORT) as port:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /endless HTTP/1.1\r\nhost: h\r\n\r\n")
            time.sleep(0.8)
            received = read_all(connection)
        assert app.is_calm.wait(5)
        assert len(received) < ENDLESS / 4, "the server buffered for a client that does not read"
        assert not received.endswith(b"0\r\n\r\n"), "a cut stream must not look whole"


def test_a_stream_longer_than_every_limit_is_not_cut(kind: str) -> None:
    limits = {"header_s": 0.05, "body_s": 0.05, "keep_alive_s": 0.05, "write_s": 0.05}
    with front(kind, App(), **limits) as port:
        answer = talk(port, b"GET /stream HTTP/1.1\r\nhost: h\r\n\r\n")
    assert b"data: [DONE]" in answer
    assert answer.endswith(b"0\r\n\r\n")


# --- size -----------------------------------------------------------------------------------------


def test_headers_without_end_are_refused(port: int) -> None:
    answer = talk(port, b"GET / HTTP/1.1\r\nhost: h\r\nx: ", *[b"y" * 8192] * 16, pause=0.005)
    assert statuses(answer) == [431]
    assert is_served(port)


@pytest.mark.parametrize(
    "head",
    [
        b"x: " + b"y" * 40_000 + b"\r\n",
        b"".join(b"x-%d: y\r\n" % n for n in range(200)),
    ],
    ids=["one-long", "many"],
)
def test_headers_that_are_too_large_are_refused(port: int, head: bytes) -> None:
    answer = talk(port, b"GET / HTTP/1.1\r\nhost: h\r\n" + head + b"\r\n")
    assert statuses(answer) == [431]
    assert is_served(port)


@pytest.mark.parametrize(
    ("rest", "status"),
    [(b"x-b: " + b"y" * 60_000 + b"\r\n\r\n", 431), (b"no header\r\n" + b"\0" * 50_000, 400)],
    ids=["too long", "no HTTP"],
)
def test_a_head_that_is_wrong_in_two_ways_is_refused_once_and_in_silence(
    port: int, caplog: pytest.LogCaptureFixture, rest: bytes, status: int
) -> None:
    answer = talk(port, b"GET / HTTP/1.1\r\nhost: h\r\nx-a: 1\r\n", rest, pause=0.05)
    assert statuses(answer) == [status]
    assert is_served(port)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_what_came_before_a_head_is_not_counted_as_part_of_it(port: int) -> None:
    size = 40_000  # more than a head may have
    first = b"POST /one HTTP/1.1\r\nhost: h\r\n"
    rest = b"content-length: %d\r\n\r\n" % size + b"z" * size
    second = b"POST /two HTTP/1.1\r\nhost: h\r\n"
    last = b"connection: close\r\ncontent-length: 3\r\n\r\nabc"
    answer = talk(port, first, rest + second, last, pause=0.05)
    assert statuses(answer) == [200, 200]
    assert answer.endswith(b"POST /two abc")


def test_a_request_line_without_end_is_refused(port: int) -> None:
    answer = talk(port, b"GET /", *[b"y" * 8192] * 16, pause=0.005)
    assert statuses(answer) in ([431], [400])
    assert is_served(port)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_oversize_body_is_refused_and_read_no_further(hasty: int, framing: str) -> None:
    block = b"x" * 50_000
    if framing == "length":
        head, part = b"content-length: 1000000000\r\n\r\n", block
    else:
        head, part = b"transfer-encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n" % (len(block), block)
    with socket.create_connection(("127.0.0.1", hasty), timeout=5) as connection:
        connection.sendall(HEAD + head)
        sent = 0
        try:
            while sent < 1_000 * LIMIT:
                connection.sendall(part)
                sent += len(part)
                time.sleep(0.01)
        except OSError:
            pass
    assert sent < 1_000 * LIMIT, "the server kept reading"
    assert is_served(hasty)


def test_the_client_of_an_oversize_body_reads_why(port: int) -> None:
    answer = talk(port, HEAD + b"content-length: 200000\r\n\r\n" + b"x" * 150_000)
    assert statuses(answer) == [413]
    assert answer.endswith(b"too long")


def test_more_connections_than_allowed_are_turned_away(hasty: int) -> None:
    waiting = [socket.create_connection(("127.0.0.1", hasty)) for _ in range(4)]
    time.sleep(0.05)
    answer = talk(hasty, b"")
    assert statuses(answer) == [503]
    for connection in waiting:
        connection.close()
    time.sleep(0.05)
    assert is_served(hasty)


# --- framing --------------------------------------------------------------------------------------

WRONG = {
    "no-host": b"GET / HTTP/1.1\r\n\r\n",
    "two-hosts": b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "host-with-path": b"GET / HTTP/1.1\r\nhost: a/b\r\n\r\n",
    "host-with-space": b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
    "two-lengths": HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nxx",
    "length-and-chunked": HEAD
    + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative-length": HEAD + b"content-length: -1\r\n\r\n",
    "length-no-number": HEAD + b"content-length: 1x\r\n\r\nx",
    "huge-length": HEAD + b"content-length: 99999999999999999999999\r\n\r\n",
    "unknown-coding": HEAD + b"transfer-encoding: gzip\r\n\r\nxx",
    "chunked-not-last": HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "bad-chunk": HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\nxx\r\n0\r\n\r\n",
    "huge-chunk": HEAD + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffffff\r\nxx",
    "space-in-name": b"GET / HTTP/1.1\r\nhost: h\r\nbad name: x\r\n\r\n",
    "folded": b"GET / HTTP/1.1\r\nhost: h\r\nx: a\r\n b\r\n\r\n",
    "no-colon": b"GET / HTTP/1.1\r\nhost: h\r\nnonsense\r\n\r\n",
    "bare-lf-in-value": b"GET / HTTP/1.1\r\nhost: h\r\nx: a\rb\r\n\r\n",
    "zero-byte": b"GET / HTTP/1.1\r\nhost: h\r\nx: a\0b\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 64,
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version": b"GET / HTTP/9.9\r\nhost: h\r\n\r\n",
    "unknown-method": b"FROB / HTTP/1.1\r\nhost: h\r\n\r\n",
    "connect": b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n",
    "path-not-utf8": b"GET /\xff\xfe HTTP/1.1\r\nhost: h\r\n\r\n",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_request_is_refused(port: int, name: str) -> None:
    answer = talk(port, WRONG[name])
    assert statuses(answer) == [400], answer
    assert b"invalid_request_error" in answer
    assert is_served(port)


def test_a_smuggled_request_is_not_served(port: int) -> None:
    inner = b"GET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n"
    head = b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n"
    assert b"/smuggled" not in talk(port, HEAD + head + b"0\r\n\r\n" + inner)


def test_a_bad_request_behind_a_good_one_does_not_spoil_its_answer(port: int) -> None:
    answer = talk(port, b"GET /stream HTTP/1.1\r\nhost: h\r\n\r\nnonsense\r\n\r\n")
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert statuses(answer) == [200]


def test_a_header_of_the_application_cannot_start_another(port: int) -> None:
    answer = talk(port, b"GET /inject HTTP/1.1\r\nhost: h\r\n" + CLOSE + b"\r\n")
    assert statuses(answer) in ([500], [])  # uvicorn closes without a word
    assert b"evil" not in answer


SEEDS = [
    HEAD + b"content-length: 5\r\n\r\nhello",
    HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n\r\n",
    b"GET /a?b=c HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\nupgrade: h2c\r\n\r\n",
    *WRONG.values(),
]


@st.composite
def hostile(draw: st.DrawFn) -> list[bytes]:
    """A request with bytes changed, put in, left out or repeated, in portions."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 3)):
            case 0:
                data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                data[place:place] = draw(st.sampled_from([b"\r\n", b"\0", b":", b" ", b"0", b"%"]))
            case 2:
                del data[place : place + draw(st.integers(1, 8))]
            case 3:
                data += data[place:]
    cut = draw(st.integers(0, len(data)))
    return [bytes(data[:cut]), bytes(data[cut:])]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(parts=hostile())
def test_no_bytes_stop_the_server(port: int, parts: list[bytes]) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        answer = read_all(connection)
    assert all(status < 500 for status in statuses(answer) if status != 100), answer


def test_the_server_serves_after_the_hostile(port: int) -> None:
    assert is_served(port)
