"""The semantic cache: a request worded differently gets the answer given before.

Compared are requests that are the same in everything but the wording of their last message, the
numbers, signs and negations in it included, and the order of the content words that both have.
Nearness of word-piece vectors is not sameness of meaning: a wrong hit is possible, which is why
this cache is off by default, see ``docs/gateway/caches.md``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from crossroads.gateway.caches.answers import kept_from
from crossroads.gateway.caches.feed import Entry, RedisFeed
from crossroads.gateway.caches.identity import semantic_key
from crossroads.gateway.caches.ring import Near, Ring, Rows
from crossroads.gateway.caches.settings import SemanticSettings
from crossroads.gateway.caches.word_order import (
    content_words,
    is_same_order,
    with_words,
    without_words,
)
from crossroads.gateway.call import Call
from crossroads.gateway.contracts import Kept
from crossroads.models.encoders import Encoder, Float32, get_encoder

MOST_READ = 8  # near entries whose order of words is compared, nearest first
_ROWS_ON_LOOP = 2048  # a seventh of a millisecond to search; more are searched in a thread


class SemanticCache:
    """Answers by the nearness of the last message.

    Parameters
    ----------
    encoder : turns texts into vectors of length one
    settings : threshold and bounds
    feed : shares entries with other processes; None to keep them in this one
    """

    def __init__(
        self, encoder: Encoder, settings: SemanticSettings, feed: RedisFeed | None = None
    ) -> None:
        self._encoder = encoder
        self._threshold = settings.threshold
        self._ttl = settings.ttl_s
        self._max_characters = settings.max_characters
        self._feed = feed
        self._ring = Ring(
            encoder.dim, max_entries=settings.max_entries, max_bytes=settings.max_bytes
        )
        self._num_hits = 0
        self._num_misses = 0

    @classmethod
    def load(cls, settings: SemanticSettings, feed: RedisFeed | None = None) -> SemanticCache:
        """Return a cache whose encoder is loaded and warm. Raises CrossroadsError."""
        encoder = get_encoder(settings.encoder)
        encoder.encode(["a text to load what is loaded at the first one"])
        return cls(encoder, settings, feed)

    async def get(self, call: Call, scope: bytes, names: Sequence[bytes]) -> Kept | None:
        self._follow()
        if len(self._ring) == 0 or not self._can_compare(call):
            return None
        group = semantic_key(call, scope, names)
        if group is None:
            return None
        kept = await self._find(call, group)
        if kept is None:
            self._num_misses += 1
        else:
            self._num_hits += 1
        return kept

    def put(self, call: Call, scope: bytes, names: Sequence[bytes], data: bytes) -> None:
        self._follow()
        group = semantic_key(call, scope, names) if self._can_compare(call) else None
        if group is None:
            return
        data = with_words(content_words(call.text), data)
        if not self._encoder.is_slow:
            self._add(Entry(group, self._vector(call.text), data))
            return
        encoded = asyncio.get_running_loop().run_in_executor(None, self._vector, call.text)
        encoded.add_done_callback(lambda done: self._add(Entry(group, done.result(), data)))

    def health(self) -> dict[str, Any]:
        facts = {
            "hits": self._num_hits,
            "misses": self._num_misses,
            "store": "memory",
            "state": "ok",
            "entries": len(self._ring),
            "bytes": self._ring.size,
        }
        return facts if self._feed is None else facts | self._feed.health()

    async def close(self) -> None:
        if self._feed is not None:
            await self._feed.close()
        self._ring.clear()

    async def _find(self, call: Call, group: bytes) -> Kept | None:
        rows = self._ring.rows_of(group)
        if not len(rows):
            return None
        if len(rows) > _ROWS_ON_LOOP or self._encoder.is_slow:
            near = await asyncio.to_thread(lambda: self._near(rows, call.text))
        else:
            near = self._near(rows, call.text)
        return self._kept(call, group, near) if near else None

    def _near(self, rows: Rows, text: str) -> list[Near]:
        # Vectors are float32: the same text may come out a few ulp below one.
        least = self._threshold - 1e-6
        return self._ring.nearest(rows, self._vector(text), least=least, most=MOST_READ)

    def _kept(self, call: Call, group: bytes, near: Sequence[Near]) -> Kept | None:
        """Return the nearest answer to a text of the same order."""
        own = content_words(call.text)
        for each in near:
            value = self._ring.value(each, group)
            if value is None:
                continue
            words, data = without_words(value)
            if is_same_order(own, words):
                similarity = min(1.0, each.similarity)
                return kept_from(data, call, kind="semantic", similarity=similarity)
        return None

    def _add(self, entry: Entry) -> None:
        self._ring.add(entry.group, entry.vector, entry.data, ttl=self._ttl)
        if self._feed is not None:
            self._feed.publish(entry, ttl=self._ttl)

    def _vector(self, text: str) -> Float32:
        vector: Float32 = self._encoder.encode([text])[0]
        return vector

    def _can_compare(self, call: Call) -> bool:
        return call.dialect != "embeddings" and 0 < len(call.text) <= self._max_characters

    def _follow(self) -> None:
        if self._feed is not None:
            self._feed.follow(self._ring)
