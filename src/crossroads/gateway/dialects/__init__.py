"""The dialects the gateway speaks: how each API is asked, how it answers, how one becomes another.

``chat`` is the language between the rooms. A request of another API is kept as it was sent, for
upstreams that speak it, beside its translation into ``chat`` for all others.
"""

from crossroads.gateway.call import GATEWAY_FIELDS
from crossroads.gateway.dialects.chat import ChatSurface
from crossroads.gateway.dialects.completions import CompletionsSurface
from crossroads.gateway.dialects.embeddings import EmbeddingsSurface
from crossroads.gateway.dialects.messages import MessagesSurface
from crossroads.gateway.dialects.messages_answer import from_messages_answer, to_messages_answer
from crossroads.gateway.dialects.messages_request import (
    from_messages_request,
    to_messages_request,
)
from crossroads.gateway.dialects.messages_stream import ChatToMessages, MessagesToChat
from crossroads.gateway.dialects.reading import forwarded
from crossroads.gateway.dialects.registry import Surfaces, build_store, build_surfaces
from crossroads.gateway.dialects.responses import ResponsesSurface
from crossroads.gateway.dialects.responses_store import MemoryStore, ResponsesStore, Stored
from crossroads.gateway.dialects.settings import ResponsesSettings
from crossroads.gateway.dialects.stored import StoredResponses

__all__ = [
    "GATEWAY_FIELDS",
    "ChatSurface",
    "ChatToMessages",
    "CompletionsSurface",
    "EmbeddingsSurface",
    "MemoryStore",
    "MessagesSurface",
    "MessagesToChat",
    "ResponsesSettings",
    "ResponsesStore",
    "ResponsesSurface",
    "Stored",
    "StoredResponses",
    "Surfaces",
    "build_store",
    "build_surfaces",
    "forwarded",
    "from_messages_answer",
    "from_messages_request",
    "to_messages_answer",
    "to_messages_request",
]
