"""What may be told of a configuration: no password of a URL, no value that can be a secret."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PLAIN = frozenset(  # fields and sections in which no secret can be
    {
        *("host", "port", "workers", "limits", "http", "front", "timeouts", "rule", "fallbacks"),
        *("failures", "idempotency", "evaluation", "baseline", "watch_s"),
    }
)


def safe_url(url: str) -> str:
    """Return the URL without its login's password and its query, for messages and logs.

    The login ends at the last ``@``, whatever the scheme and whatever stands in the password. One
    without a user is not shown at all: it may be a password that lacks its colon.

    >>> safe_url("redis://me:se/cr#et@host:6379/0")
    'redis://me:***@host:6379/0'
    """
    if url.startswith("sqlite:"):
        return url
    scheme, slashes, rest = url.partition("://") if "://" in url else ("", "", url)
    login, at, place = rest.rpartition("@")
    place = re.split(r"[?#]", place, maxsplit=1)[0]
    if not at:
        return f"{scheme}{slashes}{place}"
    user, colon, _ = login.partition(":")
    return f"{scheme}{slashes}{user if colon else ''}{colon}***@{place}"


def is_plain(place: Sequence[int | str]) -> bool:
    """Tell whether what stands at a place of the configuration can be no secret, and hold none."""
    return bool(place) and place[0] in _PLAIN
