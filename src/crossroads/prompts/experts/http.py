"""An expert behind an OpenAI-compatible HTTP endpoint.

Every way such an endpoint can fail becomes one ``ExpertError`` that says what happened, where,
and which status the gateway's client should see:

=====================================  ======  ==================================================
what happened                          status  code
=====================================  ======  ==================================================
no connection, or lost before answer   503     upstream_unavailable
no answer, or a stall, in time         504     upstream_timeout
400, 404, 408, 409, 413, 422, 429      same    the upstream's own
401, 403 (our key, not the client's)   502     upstream_refused
503 and 529 (overloaded)               503     the upstream's own
any other status                       502     upstream_error
200 with something else than an answer 502     upstream_invalid
an answer that breaks off              502     upstream_cut
=====================================  ======  ==================================================

What an upstream says when it refuses our key is never passed on: it often quotes the key, masked.

Answers are asked for whole: whoever measures models has no use for their first words. The gateway,
whose clients have, asks through ``crossroads.gateway.upstreams``.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import orjson

from crossroads.core.errors import InputError
from crossroads.core.http.timeouts import Timeouts
from crossroads.prompts.experts.base import (
    Chunk,
    Completion,
    ExpertError,
    Request,
    chunks_of,
    wants_usage,
)
from crossroads.prompts.experts.environment import expand

T = TypeVar("T")

_SAME_STATUS = frozenset({400, 404, 408, 409, 413, 422, 429})
_OVERLOADED = frozenset({503, 529})
_OUR_KEY = frozenset({401, 403})
_OUR_KEY_CODES = frozenset({"401", "403", "invalid_api_key"})  # where the status was 200
_TYPES = {404: "not_found_error", 429: "rate_limit_error"}
_PORTION = 1 << 16  # bytes asked for at a time of an answer of unknown length
_EXCERPT = 200  # characters of a foreign body that an error message quotes
_STREAMING = frozenset({"stream", "stream_options"})


@dataclass(kw_only=True)
class HttpExpert:
    """Calls ``{endpoint}/chat/completions``.

    Parameters
    ----------
    name : the model's name in the pool
    endpoint : base URL, for instance ``https://host/v1``
    upstream_model : the model's name there; ``name`` if not given
    api_key : sent as a bearer token; may hold ``${NAME}``, resolved at start and never stored
    headers : sent with every call, before ours; values as ``api_key``
    proxy : ``http://host:port`` to reach it through; as ``api_key``
    ca_file : PEM file of the authorities to trust in place of the system's
    timeouts : seconds per phase
    max_answer_bytes : longest answer that is read
    """

    name: str
    endpoint: str
    upstream_model: str | None = None
    api_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    max_answer_bytes: int = 64 << 20

    _session: aiohttp.ClientSession | None = field(default=None, init=False, repr=False)
    _proxy: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        host = _host(self.endpoint)
        if host is None:
            raise InputError(
                f"model {self.name!r}: endpoint {self.endpoint!r} is not a URL; "
                "expected https://host/v1 or local:<expert>"
            )
        self._host = host  # what errors show: no path, no user, no key
        self._url = f"{self.endpoint.rstrip('/')}/chat/completions"

    async def start(self) -> None:
        """Read keys and certificates. Raises InputError where one is not there."""
        where = f"model {self.name!r}"
        self._proxy = None if self.proxy is None else _proxy(self.proxy, where)
        tls = True if self.ca_file is None else _tls_context(self.ca_file)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=tls),  # a queue here would only hide
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._own_headers(where),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.timeouts.connect),
        )

    def _own_headers(self, where: str) -> dict[str, str]:
        headers = {
            name.lower(): expand(value, where=f"headers.{name} of {where}")
            for name, value in self.headers.items()
        }
        if self.api_key:
            key = expand(self.api_key, where=f"api_key of {where}")
            headers.setdefault("authorization", f"Bearer {key}")
        for name, value in headers.items():
            if not (name + value).isascii() or not (name + value).isprintable():
                raise InputError(f"{where}: header {name}: expected printable ASCII on one line")
        return {**headers, "content-type": "application/json", "accept-encoding": "identity"}

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def complete(self, request: Request) -> Completion:
        async with self._call(request) as (response, deadline):
            return await self._read_completion(response, deadline)

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Yield the answer in chunks once it is there. Raises ExpertError."""
        answer = await self.complete(request)
        for chunk in chunks_of(answer, include_usage=wants_usage(request)):
            yield chunk

    @asynccontextmanager
    async def _call(self, request: Request) -> AsyncIterator[tuple[aiohttp.ClientResponse, float]]:
        """Send the request; yield the response, its status being 200, and the call's deadline."""
        assert self._session is not None, "start() first"
        deadline = time.monotonic() + self.timeouts.total
        try:
            whole = {name: value for name, value in request.items() if name not in _STREAMING}
            body = orjson.dumps({**whole, "model": self.upstream_model or self.name})
        except orjson.JSONEncodeError as error:  # nested deeper than what is written
            raise self._error(
                f"the request cannot be passed on ({error})",
                status=400,
                type="invalid_request_error",
                code=None,
            ) from error
        try:
            call = self._session.post(
                self._url, data=body, proxy=self._proxy, allow_redirects=False
            )
            response = await self._in_time(call, deadline, self.timeouts.first_byte, "answer")
        except aiohttp.ClientError as error:
            raise self._unavailable(error) from error
        try:
            if response.status != 200:
                raise await self._refusal(response, deadline)
            yield response, deadline
        finally:
            response.release()  # keeps the connection if the body was read to its end

    async def _in_time(self, work: Awaitable[T], deadline: float, seconds: float, what: str) -> T:
        """Await ``work`` for at most ``seconds``, and never past the deadline of the call."""
        left = deadline - time.monotonic()
        try:
            async with asyncio.timeout(min(seconds, left)):
                return await work
        except aiohttp.ServerTimeoutError as error:
            raise self._error(
                f"no connection within {self.timeouts.connect:g} s",
                status=504,
                code="upstream_timeout",
            ) from error
        except TimeoutError as error:
            spent = self.timeouts.total if left < seconds else seconds
            raise self._error(
                f"no {what} within {spent:g} s", status=504, code="upstream_timeout"
            ) from error

    async def _portions(
        self, response: aiohttp.ClientResponse, deadline: float
    ) -> AsyncIterator[bytes]:
        """Yield the body as it arrives; a connection that breaks is an error, not an end."""
        while True:
            try:
                portion = await self._in_time(
                    response.content.read(_PORTION), deadline, self.timeouts.idle, "further bytes"
                )
            except aiohttp.ClientError as error:
                raise self._error("the answer broke off", code="upstream_cut") from error
            if not portion:
                return
            yield portion

    async def _read_body(self, response: aiohttp.ClientResponse, deadline: float) -> bytes:
        body = bytearray()
        async for portion in self._portions(response, deadline):
            body += portion
            if len(body) > self.max_answer_bytes:
                raise self._error(
                    f"answer of more than {self.max_answer_bytes} bytes", code="upstream_invalid"
                )
        return bytes(body)

    async def _read_completion(
        self, response: aiohttp.ClientResponse, deadline: float
    ) -> Completion:
        body = await self._read_body(response, deadline)
        answer = _json_object(body)
        if answer is not None and answer.get("error"):
            raise self._reported(answer["error"])
        if answer is None or not isinstance(answer.get("choices"), list):
            raise self._error(
                f"status 200 but no chat completion ({response.content_type}): {_excerpt(body)}",
                code="upstream_invalid",
            )
        return answer

    async def _refusal(self, response: aiohttp.ClientResponse, deadline: float) -> ExpertError:
        """Turn a response of another status than 200 into an error."""
        status = response.status
        if status in _OUR_KEY:
            return self._refused()
        body = await self._read_body(response, deadline)
        answer = _json_object(body) or {}
        given = answer.get("error", answer)
        given = given if isinstance(given, Mapping) else {"message": given}
        message = given.get("message") or _excerpt(body) or response.reason
        text = f"status {status}: {message}"
        if status not in _SAME_STATUS and status not in _OVERLOADED:
            return self._error(text)
        own_type = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        return self._error(
            text,
            status=status if status in _SAME_STATUS else 503,
            type=_text(given.get("type")) or own_type,
            code=_text(given.get("code")) or "upstream_error",
            param=_text(given.get("param")),
            retry_after=_seconds(response.headers.get("retry-after")),
        )

    def _reported(self, given: Any) -> ExpertError:
        """An error object where an answer was due."""
        fields = given if isinstance(given, Mapping) else {"message": given}
        if _text(fields.get("code")) in _OUR_KEY_CODES:
            return self._refused()
        return self._error(
            str(fields.get("message") or "an error without a message"),
            type=_text(fields.get("type")) or "api_error",
            code=_text(fields.get("code")) or "upstream_error",
        )

    def _refused(self) -> ExpertError:
        """Our key was refused. The upstream's own words may show it, and stay here."""
        return self._error(
            "the upstream refused the gateway's credentials; check api_key in the pool",
            code="upstream_refused",
        )

    def _unavailable(self, error: aiohttp.ClientError) -> ExpertError:
        reached = not isinstance(error, aiohttp.ClientConnectorError)
        what = "connection lost before an answer" if reached else f"no connection ({error})"
        return self._error(what, status=503, code="upstream_unavailable")

    def _error(self, what: str, **fields: Any) -> ExpertError:
        line = " ".join(what.split())
        return ExpertError(f"model {self.name!r} at {self._host}: {line}", **fields)


def _host(url: str) -> str | None:
    """Return host and port of an http(s) URL, None if it is not one."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return None
    is_http = parts.scheme in {"http", "https"} and parts.hostname
    return f"{parts.hostname}{port}" if is_http else None


def _proxy(proxy: str, where: str) -> str:
    url = expand(proxy, where=f"proxy of {where}")
    if _host(url) is None or not url.startswith("http://"):
        raise InputError(f"{where}: proxy is not http://host:port")
    return url


def _tls_context(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # TLS errors are OSErrors, too
        raise InputError(
            f"ca_file {ca_file!r}: {error.strerror or error}; give a PEM file of certificates"
        ) from error


def _json_object(data: bytes | str) -> dict[str, Any] | None:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _excerpt(body: bytes) -> str:
    text = " ".join(body[: 4 * _EXCERPT].decode("utf-8", "replace").split())
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "..."


def _text(value: Any) -> str | None:
    """A field of a foreign error object: some servers send numbers where text is due."""
    return None if value is None else str(value)


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None  # an HTTP date: rare for these endpoints, and a default wait does as well
