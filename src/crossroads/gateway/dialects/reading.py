"""Reading requests: what the gateway relies on is checked, everything else is left alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from crossroads.core.errors import unknown_name
from crossroads.gateway.call import GATEWAY_FIELDS, Body
from crossroads.gateway.errors import ApiError

OWN_FIELD = "crossroads"  # of a request, with options for the gateway
_OWN_NAMES = frozenset(("policy", "session", "tags", "cache"))

# Whole numbers of 64 bits; what is beyond them was read as a float, and has lost digits.
_LEAST, _BEYOND = float(-(2**63)), float(2**64)

_NAMES = {bool: "boolean", str: "string", dict: "object", list: "list"}


def load(raw: bytes) -> Body:
    """Return the JSON object of a request. Raises ApiError 400."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(
            f"The request body is not valid JSON: {error}.", code="invalid_json"
        ) from None
    if not isinstance(body, dict):
        raise ApiError(f"The request body must be a JSON object, got {kind(body)}.")
    for value in body.values():
        if value.__class__ is float and not _LEAST < value < _BEYOND:
            _check_numbers(raw)
            break
    return body


def _check_numbers(raw: bytes) -> None:
    """Refuse whole numbers that were rounded. Raises ApiError 400 naming the field."""
    try:
        exact = json.loads(raw)
    except (ValueError, RecursionError):  # more digits than Python reads, or too deep
        raise ApiError("A number in the request has too many digits; send a shorter one.") from None
    for name, value in exact.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ApiError(f"{name!r} does not fit in 64 bits; send a smaller number.", param=name)


def model_of(body: Body) -> str:
    """Return the field ``model``. Raises ApiError 400."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise wrong("model", "a model's name, or 'auto'", model)
    return model


def is_stream(body: Body) -> bool:
    """Return whether the field ``stream`` asks for events. Raises ApiError 400."""
    stream = body.get("stream")
    if stream is None or stream is False:
        return False
    if stream is True:
        return True
    raise wrong("stream", "true or false", stream)


def own_headers(body: Body, headers: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """Fold the request's ``crossroads`` object into the headers that say the same.

    ``policy`` and ``session`` take the place of the header ``x-crossroads-<name>``, ``tags`` add to
    it, and ``cache: false`` is ``cache-control: no-store``. So the rooms need to look in one place
    only. Raises ApiError 400, also for a field that is none of these.
    """
    given = body.get(OWN_FIELD)
    if given is None:
        return headers
    own = as_object(given, OWN_FIELD)
    for name in own.keys() - _OWN_NAMES:
        problem = unknown_name("field", name, _OWN_NAMES)
        raise ApiError(f"{OWN_FIELD}: {problem}", param=f"{OWN_FIELD}.{name}")
    more: dict[bytes, bytes] = {}
    for name in ("policy", "session"):
        if own.get(name) is not None:
            more[f"x-crossroads-{name}".encode()] = _header(own[name], f"{OWN_FIELD}.{name}")
    if own.get("tags") is not None:
        more[b"x-crossroads-tags"] = _tags(own["tags"], headers.get(b"x-crossroads-tags", b""))
    cache = own.get("cache")
    if cache is not None and not isinstance(cache, bool):
        raise wrong(f"{OWN_FIELD}.cache", "true or false", cache)
    if cache is False:
        more[b"cache-control"] = b"no-store"
    return {**headers, **more}


def _tags(value: Any, given: bytes) -> bytes:
    tags = [_header(tag, f"{OWN_FIELD}.tags") for tag in as_list(value, f"{OWN_FIELD}.tags")]
    if any(b"," in tag for tag in tags):
        raise wrong(f"{OWN_FIELD}.tags", "a list of texts without commas", value)
    return b",".join([given, *tags] if given else tags)


def _header(value: Any, param: str) -> bytes:
    expected = "printable Latin text of 1 to 256 characters"
    if not isinstance(value, str) or not 1 <= len(value) <= 256 or not value.isprintable():
        raise wrong(param, expected, value)
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        raise wrong(param, expected, value) from None


def forwarded(body: Body) -> Body:
    """Return a copy of a request without the fields that are the gateway's own."""
    return {name: value for name, value in body.items() if name not in GATEWAY_FIELDS}


def as_object(value: Any, param: str) -> dict[str, Any]:
    """Return ``value`` if it is an object. Raises ApiError 400."""
    if not isinstance(value, dict):
        raise wrong(param, "an object", value)
    return value


def as_list(value: Any, param: str) -> list[Any]:
    """Return ``value`` if it is a list. Raises ApiError 400."""
    if not isinstance(value, list):
        raise wrong(param, "a list", value)
    return value


def as_text(value: Any, param: str) -> str:
    """Return ``value`` if it is a string. Raises ApiError 400."""
    if not isinstance(value, str):
        raise wrong(param, "a string", value)
    return value


def parts_of(content: Any, param: str) -> list[dict[str, Any]]:
    """Return a message's content as a list of parts; nothing is no part. Raises ApiError 400."""
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise wrong(param, "a string or a list of parts", content)
    return [as_object(part, f"{param}[{number}]") for number, part in enumerate(content)]


def json_object(text: Any, param: str) -> dict[str, Any]:
    """Return the JSON object a text holds; an empty text is an empty one. Raises ApiError 400."""
    text = as_text(text, param)
    if not text.strip():
        return {}
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = text
    if not isinstance(value, dict):
        raise wrong(param, "the JSON text of an object", value)
    return value


def wrong(param: str, expected: str, given: Any) -> ApiError:
    """Return the error for a field that is not what it must be; numbers are told as they came."""
    got = repr(given).lower()[:40] if isinstance(given, bool | int | float) else kind(given)
    return ApiError(f"{param!r} must be {expected}, got {got}.", param=param)


def kind(value: Any) -> str:
    """Return what a JSON value is, in words."""
    if value is None:
        return "nothing"
    name = _NAMES.get(type(value), "number")
    if name != "number" and value in ("", [], {}):
        return f"an empty {name}"
    return f"an {name}" if name == "object" else f"a {name}"
