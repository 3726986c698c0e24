"""What may be told of a configuration: no password of a URL, no value that can be a secret."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml
from pydantic import ValidationError

_PLAIN = frozenset(  # fields and sections in which no secret can be
    {
        *("host", "port", "workers", "limits", "http", "front", "timeouts", "rule", "fallbacks"),
        *("failures", "idempotency", "evaluation", "baseline", "watch_s"),
    }
)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


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


def describe(error: ValidationError) -> str:
    """Return the first problem of a pydantic error on one line: field and problem.

    The value given is shown only where it cannot be a secret, and hold none.
    """
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "top level"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    problem, given = " ".join(first["msg"].split()), first["input"]
    if is_plain(first["loc"]) and isinstance(given, str | int | float | None):
        return f"{place}: {problem}, got {given!r:.80}{more}"
    return f"{place}: {problem}{more}"


def describe_yaml(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """Return what is wrong with a YAML text, and where, without a word of the text."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "not readable"
    problem = _QUOTED.sub("'...'", " ".join(str(problem).split()))
    if mark is None:
        return problem
    return f"{problem} in line {mark.line + 1}, column {mark.column + 1}"
