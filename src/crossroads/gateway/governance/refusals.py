"""What a client is told about its limits: headers of every answer, and the refusals."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from datetime import UTC, datetime

from crossroads.gateway.call import Call, Dialect
from crossroads.gateway.errors import ApiError, Headers
from crossroads.gateway.governance.accounts import NANO_USD
from crossroads.gateway.governance.meters import Meter

_NOUNS = {"requests": "requests", "tokens": "tokens", "parallel": "requests at a time"}
_OPENAI = {
    kind: tuple(f"x-ratelimit-{what}-{kind}".encode() for what in ("limit", "remaining", "reset"))
    for kind in ("requests", "tokens")
}
_ANTHROPIC = {
    kind: tuple(
        f"anthropic-ratelimit-{kind}-{what}".encode() for what in ("limit", "remaining", "reset")
    )
    for kind in ("requests", "tokens")
}


def limit_headers(
    requests: Iterable[Meter], tokens: Iterable[Meter], dialect: Dialect, now: int
) -> Headers:
    """Return the headers of the limits that are closest to being met, one of each kind."""
    found: Headers = []
    names = _ANTHROPIC if dialect == "messages" else _OPENAI
    write = _rfc3339 if dialect == "messages" else duration
    for kind, meters in (("requests", requests), ("tokens", tokens)):
        nearest, least = None, 0
        for meter in meters:
            left = meter.left(now)
            if nearest is None or left < least:
                nearest, least = meter, left
        if nearest is not None:
            limit, remaining, reset = names[kind]
            found.append((limit, b"%d" % nearest.limit))
            found.append((remaining, b"%d" % (least if least > 0 else 0)))
            found.append((reset, write(nearest.reset_s(now))))
    return found


def duration(seconds: float) -> bytes:
    """Return seconds as OpenAI writes them: ``0s``, ``120ms``, ``8s``, ``6m0s``, ``1h0m0s``.

    Rounded up, so that who waits as long has waited long enough.
    """
    if seconds <= 0:
        return b"0s"
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    minutes, rest = divmod(math.ceil(seconds), 60)
    if minutes == 0:
        return b"%ds" % rest
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%ds" % (hours, minutes, rest) if hours else b"%dm%ds" % (minutes, rest)


def _rfc3339(seconds: float) -> bytes:
    at = math.ceil(time.time() + max(0.0, seconds))
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()


def too_many(meter: Meter, n: int, now: int, headers: Headers) -> ApiError:
    """Return the 429 of a limit of requests or tokens."""
    limit = f"{meter.limit} {_NOUNS[meter.kind]}"
    if meter.kind != "parallel":
        limit += f" a {meter.period}"
    wait = meter.wait_s(n, now)
    if wait is None:
        return ApiError(
            f"This request counts {n} {meter.kind}, more than {meter.scope} may ever use: {limit}. "
            "Shorten it, lower max_tokens, or raise the limit.",
            status=429,
            code="rate_limit_exceeded",
            headers=[(b"x-should-retry", b"false"), *headers],
        )
    return ApiError(
        f"Limit of {meter.scope} reached: {limit}. Try again in {duration(wait).decode()}.",
        status=429,
        code="rate_limit_exceeded",
        headers=[*_retry_after(wait), *headers],
    )


def out_of_money(meter: Meter, n: int, now: int) -> ApiError:
    """Return the 429 of a budget: used up, too little left for this call, or ever too small.

    Its limits' headers are not here: the answer has them anyway, since the call was let in.
    """
    whole = f"{meter.limit / NANO_USD:g} USD per {meter.period}"
    cost = f"may cost {n / NANO_USD:.6g} USD"
    if n > meter.limit:
        return _no_quota(
            f"This request {cost} and does not fit the budget of {meter.scope}, {whole}. Send "
            "max_tokens, or a lower one, shorten the prompt, or raise the budget.",
            [],
        )
    reset, left = meter.reset_s(now), max(0, meter.left(now))
    at = datetime.fromtimestamp(math.ceil(time.time() + reset), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if left == 0:
        message = f"Budget of {meter.scope} is used up: {whole}; this request {cost}."
    else:
        message = (
            f"Budget of {meter.scope}, {whole}, has {left / NANO_USD:.6g} USD left, and this "
            f"request {cost}. Send max_tokens, or a lower one, or wait."
        )
    return _no_quota(f"{message} It resets at {at}.", _retry_after(reset))


def _no_quota(message: str, headers: Headers) -> ApiError:
    return ApiError(
        message,
        status=429,
        type="insufficient_quota",
        code="insufficient_quota",
        headers=[*headers, (b"x-should-retry", b"false")],
    )


def not_allowed(call: Call) -> ApiError:
    """Return the 403 of a model that is not on the key's list."""
    allowed = ", ".join(sorted(call.client.models or ()))
    return ApiError(
        f"The key {call.client.key_id!r} may not ask for {call.model!r}; it may for: {allowed}.",
        status=403,
        code="model_not_allowed",
        param="model",
    )


def is_local(origin: bytes) -> bool:
    """Whether an ``Origin`` is a page of this machine, or of an application that is no browser."""
    scheme, _, rest = origin.partition(b"://")
    if scheme not in (b"http", b"https", b"null"):
        return True
    if rest.startswith(b"["):
        return rest.partition(b"]")[0] == b"[::1"
    return rest.partition(b":")[0] in (b"localhost", b"127.0.0.1")


def foreign_page() -> ApiError:
    """Return the 403 of a web page from elsewhere that would spend what it finds unlocked here."""
    return ApiError(
        "Pages of other sites may not use a gateway without keys; set api_key, or governance.keys.",
        status=403,
        code="foreign_origin",
    )


def _retry_after(seconds: float) -> Headers:
    whole = max(1, math.ceil(seconds))
    return [
        (b"retry-after", b"%d" % whole),
        (b"retry-after-ms", b"%d" % max(1, math.ceil(seconds * 1000))),
    ]
