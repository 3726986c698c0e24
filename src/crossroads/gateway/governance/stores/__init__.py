"""Where workers and replicas share their counts."""

from __future__ import annotations

from crossroads.gateway.governance.stores.base import Answer, Ask, Store, StoreError

__all__ = ["Answer", "Ask", "Store", "StoreError", "open_store"]


def open_store(url: str) -> Store:
    """Return the store of ``sqlite:PATH``, ``redis://...`` or ``unix://...``; opened when used.

    Raises InputError for a URL or path that cannot be right, MissingExtraError without redis.
    """
    if url.startswith("sqlite:"):
        from crossroads.gateway.governance.stores.sqlite import SqliteStore

        return SqliteStore(url.removeprefix("sqlite:"))
    from crossroads.gateway.governance.stores.redis import RedisStore

    return RedisStore(url)
