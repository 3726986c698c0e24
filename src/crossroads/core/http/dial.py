"""From a URL to a connection: TCP, TLS, and proxies."""

from __future__ import annotations

import asyncio
import base64
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from crossroads.core.errors import InputError
from crossroads.core.http.connection import MAX_HEAD_BYTES, Connection, HttpFailure

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server and the way to it. Connections to equal targets are interchangeable.

    Attributes
    ----------
    host, port : of the server
    is_tls : whether it speaks https
    proxy : host and port of an HTTP proxy in front of it
    proxy_credentials : value of ``proxy-authorization``; not shown
    ca_file : PEM file of the authorities to trust in place of the system's
    """

    host: str
    port: int
    is_tls: bool = False
    proxy: tuple[str, int] | None = None
    proxy_credentials: str | None = None
    ca_file: str | None = None

    @property
    def authority(self) -> str:
        """Host and port as in the header ``host``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = _PORTS["https" if self.is_tls else "http"]
        return host if self.port == default else f"{host}:{self.port}"

    def __repr__(self) -> str:
        return f"Target({'https' if self.is_tls else 'http'}://{self.authority})"


@dataclass(frozen=True, slots=True)
class Base:
    """Where the parts of an API are: a target and the path in front of their names."""

    target: Target
    path: str
    query: str = ""

    def path_of(self, part: str) -> str:
        """Return what a request line names, absolute where a proxy has to be told."""
        path = f"{self.path}/{part}{self.query}"
        if self.target.proxy is not None and not self.target.is_tls:
            return f"http://{self.target.authority}{path}"
        return path


def parse_endpoint(
    url: str, *, where: str, proxy: str | None = None, ca_file: str | None = None
) -> Base:
    """Return where an API is. Raises InputError for what is not a plain http(s) URL.

    ``where`` names the model in errors, which never show what may be a password.
    """
    parts = _split(url, where=where, what="endpoint")
    if parts.scheme not in _PORTS or not parts.hostname:
        raise InputError(
            f"{where}: endpoint {_shown(url)!r} is not a URL; "
            "expected https://host/v1 or local:<expert>"
        )
    if parts.username is not None or parts.password is not None:
        raise InputError(f"{where}: endpoint holds a user or password; use api_key or headers")
    if not url.isascii() or not url.isprintable() or " " in url or parts.fragment:
        raise InputError(
            f"{where}: endpoint {_shown(url)!r}: expected printable ASCII without spaces "
            "and fragment"
        )
    target = Target(
        host=parts.hostname,
        port=parts.port or _PORTS[parts.scheme],
        is_tls=parts.scheme == "https",
        ca_file=ca_file,
    )
    if proxy is not None:
        target = _through(target, proxy, where=where)
    query = f"?{parts.query}" if parts.query else ""
    return Base(target, parts.path.rstrip("/"), query)


def _shown(url: str) -> str:
    """Leave out what may be a user and a password."""
    return f"...@{url.rpartition('@')[2]}" if "@" in url else url


def _through(target: Target, proxy: str, *, where: str) -> Target:
    parts = _split(proxy, where=where, what="proxy")
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
        raise InputError(f"{where}: proxy is not http://host:port")
    credentials = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        credentials = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return Target(
        host=target.host,
        port=target.port,
        is_tls=target.is_tls,
        proxy=(parts.hostname, parts.port or _PORTS["http"]),
        proxy_credentials=credentials,
        ca_file=target.ca_file,
    )


def _split(url: str, *, where: str, what: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # checked only when read
    except ValueError as error:
        raise InputError(f"{where}: {what} is not a URL: {error}") from error
    return parts


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return a context that verifies certificate and name. Raises InputError."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        what = "no such file" if ca_file and not Path(ca_file).is_file() else str(error)
        raise InputError(f"ca_file {ca_file!r}: {what}; give a PEM file of certificates") from error
    context.set_alpn_protocols(["http/1.1"])
    return context


async def dial(
    loop: asyncio.AbstractEventLoop,
    target: Target,
    tls: ssl.SSLContext | None,
    connection: Connection,
) -> None:
    """Connect. Raises HttpFailure; cancelling closes what was opened."""
    try:
        if target.proxy is None:
            name = target.host if tls is not None else None
            await loop.create_connection(
                lambda: connection, target.host, target.port, ssl=tls, server_hostname=name
            )
        elif tls is None:
            await loop.create_connection(lambda: connection, *target.proxy)
        else:
            await _tunnel(loop, target, tls, connection)
    except ssl.SSLCertVerificationError as error:
        what = f"no connection (certificate not trusted: {error.verify_message})"
        raise HttpFailure("connect", what) from error
    except OSError as error:  # TLS errors are OSErrors, too
        raise HttpFailure("connect", f"no connection ({error.strerror or error})") from error


async def _tunnel(
    loop: asyncio.AbstractEventLoop, target: Target, tls: ssl.SSLContext, connection: Connection
) -> None:
    """Ask the proxy for a way to the target, and speak TLS with the target through it."""
    assert target.proxy is not None
    host = f"[{target.host}]" if ":" in target.host else target.host
    lines = [f"CONNECT {host}:{target.port} HTTP/1.1", f"host: {host}:{target.port}"]
    if target.proxy_credentials:
        lines.append(f"proxy-authorization: {target.proxy_credentials}")
    transport, opening = await loop.create_connection(lambda: _Opening(loop), *target.proxy)
    try:
        transport.write("\r\n".join([*lines, "", ""]).encode())
        status = await opening.status
        if status != 200:
            raise HttpFailure("connect", f"no connection (the proxy answered with {status})")
        secured = await loop.start_tls(transport, connection, tls, server_hostname=target.host)
        assert secured is not None
        connection.connection_made(secured)
    except BaseException:
        transport.abort()
        raise


class _Opening(asyncio.Protocol):
    """Reads a proxy's answer to CONNECT."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.status: asyncio.Future[int] = loop.create_future()
        self._seen = b""

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if self.status.done():
            return
        if b"\r\n\r\n" in self._seen:
            words = self._seen.split(b"\r\n", 1)[0].split()
            is_http = len(words) >= 2 and words[0].startswith(b"HTTP/1.") and words[1].isdigit()
            self.status.set_result(int(words[1]) if is_http else 0)
        elif len(self._seen) > MAX_HEAD_BYTES:
            self.status.set_result(0)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.status.done():
            self.status.set_exception(ConnectionError("the proxy closed the connection"))
            self.status.exception()  # whether or not anybody waits still
