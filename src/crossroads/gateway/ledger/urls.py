"""Where a ledger is: ``sqlite:PATH`` or ``postgresql://...``."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit

from crossroads.core.errors import InputError

SQLITE = "sqlite:"
POSTGRES = ("postgresql://", "postgres://")


def check_url(url: str) -> str:
    """Return the URL. Raises InputError for one that names no ledger."""
    if url.startswith(POSTGRES) or (url.startswith(SQLITE) and url != SQLITE):
        return url
    raise InputError(
        f"ledger {redacted(url)!r}: expected sqlite:PATH or postgresql://USER@HOST/DATABASE"
    )


def is_postgres(url: str) -> bool:
    return url.startswith(POSTGRES)


def sqlite_path(url: str) -> Path:
    """Return the file of a ``sqlite:PATH`` URL."""
    return Path(url.removeprefix(SQLITE)).expanduser()


def redacted(url: str) -> str:
    """Return the URL without its password, fit for logs and health."""
    if not url.startswith(POSTGRES):
        return url
    parts = urlsplit(url)
    if parts.username is None:
        return parts._replace(query="").geturl()
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username}@{host}", query="").geturl()


def default_journal(url: str) -> tuple[Path, str]:
    """Return the folder and the beginning of the names of a ledger's journals.

    The name is a digest of where the ledger is, so that two ledgers may share the folder.
    """
    digest = hashlib.sha256(redacted(url).encode()).hexdigest()[:12]
    if is_postgres(url):
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        return Path(state).expanduser() / "crossroads" / "ledger", f"ledger-{digest}"
    path = sqlite_path(url)
    return path.parent, f"{path.name}-journal-{digest}"
