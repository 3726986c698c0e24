from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import threading
import time
from typing import Any

import pytest

from crossroads.core.errors import UnavailableError
from crossroads.gateway.server import bind, serve, url_of
from crossroads.prompts.experts.base import Completion, Request, completion
from crossroads.prompts.experts.tools import ToolExpert
from tests.gateway.serving import as_upstream, gateway_of


class Slow(ToolExpert):
    async def complete(self, request: Request) -> Completion:
        await asyncio.sleep(0.5)
        return completion("slowly", model=self.name)


class Whole:
    """A gateway that lives as long as it serves."""

    def __init__(self, expert: ToolExpert) -> None:
        self.gateway = gateway_of({expert.name: as_upstream(expert)})
        self.start, self.close = self.gateway.start, self.gateway.close
        self.num_reloads = 0

    async def reload(self) -> None:
        self.num_reloads += 1


def slow_gateway() -> Whole:
    return Whole(Slow(name="slow", answer=str, refusal=""))


def ask(url: str, answers: list[Any]) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    body = json.dumps({"model": "slow", "messages": [{"role": "user", "content": "x"}]})
    connection.request("POST", "/v1/chat/completions", body)
    answers.append(json.loads(connection.getresponse().read()))
    connection.close()


def test_a_taken_port_is_one_line_with_the_remedy() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match=f"port {port} on 127.0.0.1 .*--port"):
            bind("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(UnavailableError, match=r"192\.0\.2\.1"):
        bind("192.0.2.1", 0)
    with pytest.raises(UnavailableError, match=r"host 'no\.such\.host\.invalid' cannot be used"):
        bind("no.such.host.invalid", 0)


def test_an_ip6_url_has_brackets() -> None:
    try:
        listener = bind("::1", 0)
    except UnavailableError as error:
        pytest.skip(str(error))
    with listener:
        assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_request_in_flight_finish(sign: signal.Signals) -> None:
    """``serve`` runs in this, the main thread; the client in another one sends the signal."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread only")
    listener = bind("127.0.0.1", 0)
    url, answers = url_of(listener), []  # type: ignore[var-annotated]
    client = threading.Thread(target=ask, args=(url, answers))

    def interrupt() -> None:
        client.start()
        time.sleep(0.25)
        os.kill(os.getpid(), sign)

    interrupter = threading.Thread(target=interrupt)
    serve(slow_gateway(), listener, drain=5, on_ready=interrupter.start)
    interrupter.join()
    client.join()
    assert answers[0]["choices"][0]["message"]["content"] == "slowly"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener_address(url), timeout=1)


def listener_address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def test_an_expert_that_cannot_start_is_told_by_its_own_error() -> None:
    class Broken(Slow):
        async def start(self) -> None:
            raise UnavailableError("model file x is missing; install it")

    gateway = Whole(Broken(name="b", answer=str, refusal=""))
    ready: list[bool] = []
    with pytest.raises(UnavailableError, match="model file x is missing"):
        serve(gateway, bind("127.0.0.1", 0), on_ready=lambda: ready.append(True))
    assert not ready
