"""Every surface, by the path it answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from crossroads.gateway.contracts import Surface
from crossroads.gateway.dialects.chat import ChatSurface
from crossroads.gateway.dialects.completions import CompletionsSurface
from crossroads.gateway.dialects.embeddings import EmbeddingsSurface
from crossroads.gateway.dialects.messages import MessagesSurface
from crossroads.gateway.dialects.responses import ResponsesSurface
from crossroads.gateway.dialects.responses_store import MemoryStore, ResponsesStore
from crossroads.gateway.dialects.settings import ResponsesSettings
from crossroads.gateway.dialects.stored import StoredResponses


@dataclass(frozen=True, slots=True, kw_only=True)
class Surfaces:
    """All surfaces of one gateway.

    Attributes
    ----------
    by_path : what answers POST to a path below ``/v1``
    messages : also answers ``/messages/count_tokens``
    responses : its calls must be prepared
    stored : answers the paths below ``/responses/``
    close : awaited at the end
    """

    by_path: Mapping[str, Surface]
    messages: MessagesSurface
    responses: ResponsesSurface
    stored: StoredResponses
    close: Callable[[], Awaitable[None]]


def build_surfaces(
    settings: ResponsesSettings | None = None, *, store: ResponsesStore | None = None
) -> Surfaces:
    """Return all surfaces.

    ``store`` takes the place of the one the settings name, so that a reloaded configuration goes
    on with the responses of the one before. Raises MissingExtraError where the settings name
    Redis and its library is missing.
    """
    if store is None:
        store = build_store(settings or ResponsesSettings())
    messages, responses = MessagesSurface(), ResponsesSurface(store)
    return Surfaces(
        by_path={
            "/chat/completions": ChatSurface(),
            "/completions": CompletionsSurface(),
            "/responses": responses,
            "/embeddings": EmbeddingsSurface(),
            "/messages": messages,
        },
        messages=messages,
        responses=responses,
        stored=StoredResponses(store),
        close=_nothing if store is None else store.close,
    )


def build_store(settings: ResponsesSettings) -> ResponsesStore | None:
    """Return the store the settings name; None for none. Raises MissingExtraError."""
    max_bytes = int(settings.max_mib * (1 << 20))
    if settings.store == "none":
        return None
    if settings.store == "memory":
        return MemoryStore(max_bytes=max_bytes, ttl_s=settings.ttl_s)
    from crossroads.gateway.dialects.responses_redis import RedisStore

    return RedisStore.from_url(settings.store, ttl_s=settings.ttl_s, max_bytes=max_bytes)


async def _nothing() -> None:
    """Close nothing."""
