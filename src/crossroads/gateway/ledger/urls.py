"""Where a ledger is: ``sqlite:PATH`` or ``postgresql://...``."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from crossroads.core.errors import InputError
from crossroads.gateway.redaction import safe_url

SQLITE = "sqlite:"
POSTGRES = ("postgresql://", "postgres://")

# Where an "@" is left of it, "/", "#" or "?" after a colon stand for a part of a password unless
# what is between them is a port.
_AUTHORITY = re.compile(r"(?![^/#?@]*:[^/#?@]*[^/#?@0-9][^/#?@]*[/#?].*@)")


def check_url(url: str) -> str:
    """Return the URL. Raises InputError for one that names no ledger."""
    if url.startswith(POSTGRES):
        if _AUTHORITY.match(url.partition("://")[2]):
            return url
        raise InputError(
            f"ledger {safe_url(url)!r}: its password hides the host; write / # ? of it as "
            "%2F %23 %3F"
        )
    if url.startswith(SQLITE) and url != SQLITE:
        return url
    raise InputError(
        f"ledger {safe_url(url)!r}: expected sqlite:PATH or postgresql://USER@HOST/DATABASE"
    )


def is_postgres(url: str) -> bool:
    return url.startswith(POSTGRES)


def sqlite_path(url: str) -> Path:
    """Return the file of a ``sqlite:PATH`` URL."""
    return Path(url.removeprefix(SQLITE)).expanduser()


def default_journal(url: str) -> tuple[Path, str]:
    """Return the folder and the beginning of the names of a ledger's journals.

    The name is a digest of where the ledger is, so that two ledgers may share the folder.
    """
    digest = hashlib.sha256(_identity(url).encode()).hexdigest()[:12]
    if is_postgres(url):
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        return Path(state).expanduser() / "crossroads" / "ledger", f"ledger-{digest}"
    path = sqlite_path(url)
    return path.parent, f"{path.name}-journal-{digest}"


def _identity(url: str) -> str:
    """Return what stays the same when a password changes."""
    if not is_postgres(url):
        return url
    scheme, _, rest = url.partition("://")
    login, at, place = rest.rpartition("@")
    return f"{scheme}://{login.partition(':')[0]}{at}{place.partition('?')[0]}"
