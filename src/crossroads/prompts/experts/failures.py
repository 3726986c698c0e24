"""What a failing endpoint means to whoever asked.

Every way in which it can fail becomes one ``ExpertError`` that says what happened, where, and which
status a client should see:

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

Nothing an endpoint says when it refuses our key is passed on: it often quotes the key, masked. Our
secrets are struck out of all it says else.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from crossroads.core.http.connection import FailureKind, HttpFailure
from crossroads.prompts.experts.base import ExpertError

_SAME_STATUS = frozenset({400, 404, 408, 409, 413, 422, 429})
_OVERLOADED = frozenset({503, 529})
_OUR_KEY = frozenset({401, 403})
_OUR_KEY_CODES = frozenset({"401", "403", "invalid_api_key"})
_OUR_KEY_TYPES = frozenset({"authentication_error", "permission_error"})
_TYPES = {429: "rate_limit_error"}
_IN_CHAT = {"not_found_error": "invalid_request_error"}  # Anthropic's word, and OpenAI's
_EXCERPT = 200  # characters of a foreign body that an error message quotes
_LONGEST_WAIT = 86_400.0  # seconds: what asks for more does not mean it
_SECRET_LENGTH = 6  # shorter ones would strike out common words

_OF_KIND: dict[FailureKind, tuple[int, str]] = {
    "connect": (503, "upstream_unavailable"),
    "lost": (503, "upstream_unavailable"),
    "cut": (502, "upstream_cut"),
    "late": (504, "upstream_timeout"),
    "timeout": (504, "upstream_timeout"),
    "invalid": (502, "upstream_invalid"),
}

_SPENT: frozenset[FailureKind] = frozenset({"cut", "timeout", "invalid"})  # amid the work


class ExpertFailures:
    """Makes the errors of one endpoint.

    Parameters
    ----------
    where : names model and host, at the head of every message
    secrets : texts that no message may show
    """

    __slots__ = ("_secrets", "where")

    def __init__(self, where: str, secrets: Iterable[str] = ()) -> None:
        self.where = where
        self._secrets = tuple(secret for secret in secrets if len(secret) >= _SECRET_LENGTH)

    def error(self, what: str, **fields: Any) -> ExpertError:
        """Return an error; ``fields`` as ``ExpertError`` has them."""
        return ExpertError(f"{self.where}: {self.clean(what)}", **fields)

    def spent(self, what: str, **fields: Any) -> ExpertError:
        """Return an error of a call that the endpoint had whole, and may bill."""
        return self.error(what, **fields)

    def unwritable(self, why: Exception) -> ExpertError:
        """Return what a request means that cannot be written, as one nested too deep."""
        return self.error(
            f"the request cannot be passed on ({why})",
            status=400,
            type="invalid_request_error",
            code=None,
        )

    def of_transport(self, failure: HttpFailure) -> ExpertError:
        status, code = _OF_KIND[failure.kind]
        make = self.spent if failure.kind in _SPENT else self.error
        return make(str(failure), status=status, code=code)

    def of_status(self, status: int, headers: Mapping[bytes, bytes], body: bytes) -> ExpertError:
        """Return what a response of another status than 200 means."""
        given = _error_object(body)
        if not given.get("message"):
            given = {**given, "message": excerpt(body)}
        return self.of_error(status, given, seconds_to_wait(headers))

    def of_error(
        self, status: int, given: Mapping[str, Any], retry_after: float | None
    ) -> ExpertError:
        """Return what an error object means that came with a status."""
        if status in _OUR_KEY or _is_about_key(given):
            return self.refused()
        text = f"status {status}: {given.get('message') or 'no message'}"
        if status not in _SAME_STATUS and status not in _OVERLOADED:
            return self.error(text, retry_after=retry_after)
        kind = self._text(given.get("type"))
        own_type = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        return self.error(
            text,
            status=status if status in _SAME_STATUS else 503,
            type=_IN_CHAT.get(kind, kind) if kind else own_type,
            code=self._text(given.get("code")) or "upstream_error",
            param=self._text(given.get("param")),
            retry_after=retry_after,
        )

    def reported(self, given: Any) -> ExpertError:
        """Return what an error object means that came where an answer was due."""
        fields = given if isinstance(given, Mapping) else {"message": given}
        if _is_about_key(fields):
            return self.refused()
        kind = self._text(fields.get("type")) or "api_error"
        return self.error(
            str(fields.get("message") or "an error without a message"),
            status=503 if kind == "overloaded_error" else 502,
            type=kind,
            code=self._text(fields.get("code")) or "upstream_error",
        )

    def refused(self) -> ExpertError:
        """Our key was refused. The upstream's own words may show it, and stay here."""
        return self.error(
            "the upstream refused the gateway's credentials; check api_key in the pool",
            code="upstream_refused",
        )

    def no_answer(
        self, dialect: str, headers: Mapping[bytes, bytes], body: bytes, **fields: Any
    ) -> ExpertError:
        """Return what a body means that is no answer though its status was 200."""
        coding = headers.get(b"content-encoding", b"identity").decode("latin-1")
        if coding != "identity":
            return self.invalid(f"an answer encoded as {coding}, which nobody asked for")
        kind = headers.get(b"content-type", b"").decode("latin-1")
        what = f"status 200 but no {dialect} answer ({kind}): {excerpt(body)}"
        return self.invalid(what, **fields)

    def invalid(self, what: str, **fields: Any) -> ExpertError:
        """Return what an answer means that is none."""
        return self.spent(what, code="upstream_invalid", **fields)

    def clean(self, text: str) -> str:
        """Return the text on one line and without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(text.split())

    def _text(self, value: Any) -> str | None:
        """A field of a foreign error object: some servers send numbers where text is due."""
        return None if value is None else self.clean(str(value))[:_EXCERPT]


def _error_object(body: bytes) -> Mapping[str, Any]:
    answer = json_object(body) or {}
    given = answer.get("error", answer)
    return given if isinstance(given, Mapping) else {"message": given}


def _is_about_key(given: Mapping[str, Any]) -> bool:
    return str(given.get("code")) in _OUR_KEY_CODES or str(given.get("type")) in _OUR_KEY_TYPES


def json_object(data: bytes) -> dict[str, Any] | None:
    """Return the JSON object in ``data``, None where there is something else.

    Broken UTF-8 inside a text becomes replacement characters: models that stream bytes do that.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            value = orjson.loads(data.decode("utf-8", "replace"))
        except orjson.JSONDecodeError:
            return None
    return value if type(value) is dict else None


def excerpt(body: bytes) -> str:
    """Return the beginning of a foreign body on one line."""
    text = " ".join(body[: 4 * _EXCERPT].decode("utf-8", "replace").split())
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "..."


def seconds_to_wait(headers: Mapping[bytes, bytes]) -> float | None:
    """Return what ``retry-after-ms`` or ``retry-after`` (seconds or a date) ask for, if any."""
    for name, scale in ((b"retry-after-ms", 1e-3), (b"retry-after", 1.0)):
        text = headers.get(name, b"").decode("latin-1").strip()
        if text.replace(".", "", 1).isdecimal() and text.isascii():
            return min(_LONGEST_WAIT, float(text) * scale)
    try:
        wait = parsedate_to_datetime(text).timestamp() - time.time()
        return min(_LONGEST_WAIT, max(0.0, wait))
    except (ValueError, OverflowError):
        return None
