"""The errors a user can meet. Each message names the thing, the place and the remedy.

The command line prints the message on one line and exits with ``exit_code``: 1 when the work
failed, 2 when it was asked for wrongly.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CrossroadsError(Exception):
    """Base of every error raised on purpose by this library."""

    exit_code = 1


class InputError(CrossroadsError, ValueError):
    """A file, table or value the user gave is wrong."""


class UsageError(CrossroadsError, ValueError):
    """A command, name or option that does not exist, or options that contradict each other."""

    exit_code = 2


class UnavailableError(CrossroadsError, RuntimeError):
    """Something outside this process is missing: a port, an upstream, a model file."""


class DivergedError(CrossroadsError):
    """A loss, a gradient or a weight stopped being finite; the message names where."""


class MissingExtraError(CrossroadsError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, *, extra: str) -> None:
        super().__init__(f"{what} is not installed; run: pip install 'crossroads[{extra}]'")
        self.extra = extra


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for a name that is not in a registry, with the nearest spelling.

    >>> str(unknown_name("router", "knm", ["knn", "ridge"]))
    "unknown router 'knm'; did you mean 'knn'? Known: knn, ridge"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return UsageError(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}")
