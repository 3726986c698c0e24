"""The headers that every request to an endpoint carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from crossroads.core.errors import InputError
from crossroads.prompts.experts.environment import expand

if TYPE_CHECKING:
    from crossroads.core.http.dial import Base
    from crossroads.prompts.pool import ModelCard

_RESERVED = frozenset(
    {
        *("host", "content-length", "content-type", "transfer-encoding", "connection", "te"),
        *("trailer", "upgrade", "accept-encoding", "expect", "proxy-authorization"),
    }
)


def bearer(key: str) -> tuple[str, str]:
    """Return the header in which OpenAI-compatible endpoints expect a key."""
    return "authorization", f"Bearer {key}"


def check_headers(card: ModelCard) -> None:
    """Refuse names of headers that the connection itself needs, or that are none.

    Raises InputError.
    """
    for name in card.headers:
        if name.lower() in _RESERVED or not name.replace("-", "").replace("_", "").isalnum():
            raise InputError(f"model {card.name!r}: headers: {name!r} cannot be set; leave it out")
        if not name.isascii():
            raise InputError(f"model {card.name!r}: headers: {name!r}: expected ASCII")


def secret_headers(
    card: ModelCard, *, key_header: Callable[[str], tuple[str, str]] = bearer
) -> dict[str, str]:
    """Return the headers of a card and that of its key, with what the environment holds.

    Raises InputError where a variable is not set or a value would not stay on its line.
    """
    where = f"model {card.name!r}"
    headers = {
        name.lower(): expand(value, where=f"headers.{name} of {where}")
        for name, value in card.headers.items()
    }
    if card.api_key:
        key = expand(card.api_key, where=f"api_key of {where}")
        name, value = key_header(key)
        headers.setdefault(name, value)
    for name, value in headers.items():
        if not is_plain(value.encode()):
            raise InputError(f"{where}: header {name}: expected printable ASCII on one line")
    return headers


def secrets_in(headers: dict[str, str]) -> list[str]:
    """Return the texts that no message may show."""
    return [value.removeprefix("Bearer ") for value in headers.values()]


def request_head(base: Base, part: str, headers: dict[str, str]) -> bytes:
    """Return the head of a request for a part of an API, up to what differs between requests."""
    target = base.target
    fixed = {
        "host": target.authority,
        "content-type": "application/json",
        "accept-encoding": "identity",
        **headers,
    }
    if target.proxy_credentials and not target.is_tls:
        fixed["proxy-authorization"] = target.proxy_credentials
    lines = "".join(f"{name}: {value}\r\n" for name, value in fixed.items())
    return f"POST {base.path_of(part)} HTTP/1.1\r\n{lines}".encode("latin-1")


def is_plain(value: bytes) -> bool:
    """Whether a header's value is printable ASCII, so that it cannot end its line."""
    return value.isascii() and value.decode("ascii").isprintable()
