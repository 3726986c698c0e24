"""TLS and proxies."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from crossroads.gateway.contracts import Order
from crossroads.gateway.upstreams import build_upstream
from crossroads.prompts.experts.base import ExpertError
from crossroads.prompts.pool import ModelCard
from tests.core.http.servers import SHORT, Received, raw_server, response, stream_response
from tests.gateway.upstreams.chats import HELLO, chat_answer, chat_chunk
from tests.gateway.upstreams.conftest import Run


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a key and a certificate for 127.0.0.1 that signs itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate, and is not installed")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-subj", "/CN=test"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    yield folder


def server_tls(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


class Proxy:
    """An HTTP proxy: CONNECT, and absolute URLs to one place."""

    def __init__(self) -> None:
        self.port = 0
        self.heads: list[str] = []
        self.refusal = b""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head.decode())
        if self.refusal:
            writer.write(self.refusal)
            writer.close()
            return
        method, place, _ = head.decode().split(" ", 2)
        address = place.removeprefix("http://").split("/")[0]
        host, port = address.split(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            there_writer.write(head)
        await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
    writer.close()


@asynccontextmanager
async def proxy_server() -> AsyncIterator[Proxy]:
    proxy = Proxy()
    server = await asyncio.start_server(proxy.handle, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await asyncio.sleep(0.02)


async def ask(url: str, **card: Any) -> Any:
    """Ask a model at this URL twice; return the last answer."""
    upstream = build_upstream(ModelCard(name="m", endpoint=url, **card), timeouts=SHORT)
    await upstream.start()
    try:
        await upstream.complete(Order(dialect="chat", body=HELLO))
        return await upstream.complete(Order(dialect="chat", body=HELLO))
    finally:
        await upstream.close()


def test_https_with_a_trusted_authority_keeps_its_connection(run: Run, certificate: Path) -> None:
    async def check() -> None:
        answer = response(chat_answer())
        async with raw_server(answer, tls=server_tls(certificate)) as server:
            got = await ask(server.url, ca_file=str(certificate / "cert.pem"))
            assert got["choices"][0]["message"]["content"] == "hi"
            assert (server.num_connections, len(server.requests)) == (1, 2)

    run(check())


def test_a_stream_over_https_arrives_whole_or_is_an_error(run: Run, certificate: Path) -> None:
    whole = stream_response(chat_chunk("a"), chat_chunk(None, "stop"), b"data: [DONE]\n\n")

    async def check() -> None:
        for raw, code in ((whole, None), (whole[:-50], "upstream_cut")):

            async def answer(_: Received, writer: asyncio.StreamWriter, raw: bytes = raw) -> None:
                writer.write(raw)
                writer.close()

            async with raw_server(answer, tls=server_tls(certificate)) as server:
                ca_file = str(certificate / "cert.pem")
                card = ModelCard(name="m", endpoint=server.url, ca_file=ca_file)
                upstream = build_upstream(card, timeouts=SHORT)
                await upstream.start()
                events, got = [], None
                try:
                    async for batch in upstream.stream(Order(dialect="chat", body=HELLO)):
                        events += batch
                except ExpertError as error:
                    got = error.code
                assert (len(events), got) == ((2, None) if code is None else (1, code))
                await upstream.close()

    run(check())


def test_leaving_an_https_stream_closes_its_connection_at_once(run: Run, certificate: Path) -> None:
    raw = stream_response(chat_chunk("a"), end=False)

    async def check() -> None:
        async with raw_server(raw, tls=server_tls(certificate)) as server:
            ca_file = str(certificate / "cert.pem")
            card = ModelCard(name="m", endpoint=server.url, ca_file=ca_file)
            upstream = build_upstream(card, timeouts=SHORT)
            await upstream.start()
            stream = upstream.stream(Order(dialect="chat", body=HELLO))
            await anext(stream)
            await stream.aclose()
            await asyncio.wait_for(server.gone.wait(), 0.2)
            await upstream.close()

    run(check())


def test_a_certificate_nobody_vouches_for_is_no_connection(run: Run, certificate: Path) -> None:
    async def check() -> None:
        answer = response(chat_answer())
        async with raw_server(answer, tls=server_tls(certificate)) as server:
            with pytest.raises(ExpertError, match="certificate not trusted") as failed:
                await ask(server.url)
            assert (failed.value.status, failed.value.code) == (503, "upstream_unavailable")
            assert not server.requests

    run(check())


def test_plain_http_where_tls_was_asked_for_is_no_connection(run: Run) -> None:
    async def check() -> None:
        async with raw_server(response(chat_answer())) as server:
            with pytest.raises(ExpertError) as failed:
                await ask(server.url.replace("http:", "https:"))
            assert failed.value.status in {503, 504}

    run(check())


def test_http_through_a_proxy_names_the_whole_url(run: Run) -> None:
    async def check() -> None:
        async with raw_server(response(chat_answer())) as server, proxy_server() as proxy:
            await ask(server.url, proxy=f"http://me:my%20word@127.0.0.1:{proxy.port}")
            line, *headers = proxy.heads[0].split("\r\n")
            assert line == f"POST {server.url}/chat/completions HTTP/1.1"
            assert "proxy-authorization: Basic bWU6bXkgd29yZA==" in headers
            assert (len(proxy.heads), len(server.requests)) == (1, 2)

    run(check())


def test_https_through_a_proxy_is_a_tunnel_that_hides_the_request(
    run: Run, certificate: Path
) -> None:
    async def check() -> None:
        answer = response(chat_answer())
        async with (
            raw_server(answer, tls=server_tls(certificate)) as server,
            proxy_server() as proxy,
        ):
            got = await ask(
                server.url,
                proxy=f"http://127.0.0.1:{proxy.port}",
                ca_file=str(certificate / "cert.pem"),
                api_key="secret-key",
            )
            assert got["extra"] == {"kept": True}
            assert proxy.heads == [
                f"CONNECT 127.0.0.1:{server.port} HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\n\r\n"
            ]
            assert len(server.requests) == 2

    run(check())


@pytest.mark.parametrize(
    ("refusal", "match"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "answered with 407"),
        (b"what?\r\n\r\n", "answered with 0"),
        (b"HTTP/1.1 200", "closed the connection"),
        (b"x" * 70_000, "answered with 0"),
    ],
)
def test_a_proxy_that_refuses_is_no_connection(run: Run, refusal: bytes, match: str) -> None:
    async def check() -> None:
        async with proxy_server() as proxy:
            proxy.refusal = refusal
            with pytest.raises(ExpertError, match=match) as failed:
                await ask("https://127.0.0.1:9/v1", proxy=f"http://127.0.0.1:{proxy.port}")
            assert failed.value.code == "upstream_unavailable"

    run(check())
