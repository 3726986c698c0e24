"""Both caches as the gateway sees them: one ``Cache``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from copy import copy
from typing import Any

from crossroads.gateway.caches.answers import pack
from crossroads.gateway.caches.exact import ExactCache
from crossroads.gateway.caches.feed import RedisFeed
from crossroads.gateway.caches.identity import (
    HEADERS,
    KEEP,
    READ,
    exact_key,
    permissions,
    scope_of,
)
from crossroads.gateway.caches.link import RedisLink
from crossroads.gateway.caches.semantic import SemanticCache
from crossroads.gateway.caches.settings import CacheSettings
from crossroads.gateway.caches.stores import MemoryStore, RedisStore, Store
from crossroads.gateway.call import Call, Client
from crossroads.gateway.contracts import Kept, Tally

_MOST_CLIENTS = 10_000  # whose scope is remembered


class AnswerCache:
    """Looks for the same request first, then for one of the same meaning.

    Parameters
    ----------
    exact, semantic : the caches; None for one that is off
    settings : what is kept, and who shares it
    headers : names of further headers that make requests different
    """

    def __init__(
        self,
        exact: ExactCache | None,
        semantic: SemanticCache | None,
        settings: CacheSettings,
        headers: Iterable[str] = (),
    ) -> None:
        self._exact = exact
        self._semantic = semantic
        self._scope = settings.scope
        self._sampling = settings.sampling
        self._tool_calls = settings.tool_calls
        self._max_answer_bytes = settings.max_answer_bytes
        self._headers = tuple(
            dict.fromkeys([*HEADERS, *(n.lower().encode() for n in (*settings.headers, *headers))])
        )
        self._basis = b""
        self._scopes: dict[Client, bytes] = {}
        self._counts: Counter[str] = Counter()

    def under(self, basis: bytes) -> AnswerCache:
        """Return this cache for those who answer now: answers of others are not found in it.

        ``basis`` names the models and policies that give the answers. Stores and counts are shared,
        so that a reload keeps what a reload back finds again; close either one.
        """
        view = copy(self)
        view._basis, view._scopes = basis, {}
        return view

    async def get(self, call: Call) -> Kept | None:
        """Return an answer fit for this call, or None. Never raises."""
        if not permissions(call, self._sampling) & READ:
            self._counts["bypassed"] += 1
            return None
        scope = self._scope_of(call.client)
        if self._exact is not None:
            key = exact_key(call, scope, self._headers)
            if key is None:
                return None
            kept = await self._exact.get(key, call)
            if kept is not None:
                return kept
        return (
            None if self._semantic is None else await self._semantic.get(call, scope, self._headers)
        )

    def put(self, call: Call, tally: Tally) -> None:
        """Keep a complete answer where it may be kept; returns at once."""
        if not permissions(call, self._sampling) & KEEP:
            return
        data = pack(call, tally, tool_calls=self._tool_calls)
        if data is None or len(data) > self._max_answer_bytes:
            return
        scope = self._scope_of(call.client)
        if self._exact is not None:
            key = exact_key(call, scope, self._headers)
            if key is not None:
                self._exact.put(key, call, tally.dialect, data)
        if self._semantic is not None and tally.dialect == "chat":
            self._semantic.put(call, scope, self._headers, data)

    def health(self) -> dict[str, Any]:
        """Return hits, misses and the state of the stores as plain data.

        ``status`` is ``degraded`` while a store cannot be reached: all its answers are missed.
        """
        parts: dict[str, dict[str, Any]] = {}
        if self._exact is not None:
            parts["exact"] = self._exact.health()
        if self._semantic is not None:
            parts["semantic"] = self._semantic.health()
        gone = [name for name, part in parts.items() if part["state"] != "ok"]
        bypassed = self._counts["bypassed"]
        facts = {"status": "ok", "scope": self._scope, "bypassed": bypassed, **parts}
        if gone:
            reason = f"the store of the {' and '.join(gone)} cache cannot be reached"
            facts |= {"status": "degraded", "reason": reason}
        return facts

    async def close(self) -> None:
        for cache in (self._exact, self._semantic):
            if cache is not None:
                await cache.close()

    def _scope_of(self, client: Client) -> bytes:
        scope = self._scopes.get(client)
        if scope is None:
            if len(self._scopes) >= _MOST_CLIENTS:
                self._scopes.clear()
            scope = self._scopes[client] = self._basis + scope_of(client, self._scope)
        return scope


def build_cache(settings: CacheSettings, headers: Iterable[str] = ()) -> AnswerCache | None:
    """Return the caches of a configuration; None where all are off.

    ``headers`` are those that the rules of policies go by. Loads the encoder of the semantic cache.
    Raises MissingExtraError without what Redis or the encoder needs, InputError for a URL that is
    none.
    """
    if settings.exact is None and settings.semantic is None:
        return None
    connect: Callable[[], RedisLink] | None = None
    if settings.store != "memory":

        def connect() -> RedisLink:
            return RedisLink(
                settings.store, timeout=settings.timeout_ms / 1000, retry=settings.retry_s
            )

    exact = semantic = None
    if settings.exact is not None:
        store: Store
        if connect is None:
            store = MemoryStore(max_bytes=settings.exact.max_bytes, ttl=settings.exact.ttl_s)
        else:
            store = RedisStore(connect(), namespace=settings.namespace, ttl=settings.exact.ttl_s)
        exact = ExactCache(store)
    if settings.semantic is not None:
        feed = None
        if connect is not None:
            feed = RedisFeed(
                connect(),
                namespace=settings.namespace,
                encoder=settings.semantic.encoder,
                length=settings.semantic.max_entries,
            )
        semantic = SemanticCache.load(settings.semantic, feed)
    return AnswerCache(exact, semantic, settings, headers)
