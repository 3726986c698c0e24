"""A request of ``messages`` in ``chat``, without what only Anthropic's own servers take there.

Translation keeps those fields for an upstream that translates back. Other servers ignore them at
best: OpenAI's refuses a ``metadata`` of what it does not store, and fields it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossroads.gateway.call import Body

_OF_PART = "cache_control"
_OF_MESSAGE = "thinking_blocks"  # signed thoughts
_OF_REQUEST = "metadata"  # its user_id is the field ``user`` in chat


def without_foreign(body: Body) -> Body:
    """Return the request without ``metadata``, ``thinking_blocks`` and ``cache_control``."""
    request = {name: value for name, value in body.items() if name != _OF_REQUEST}
    return {**request, "messages": [_message(message) for message in body["messages"]]}


def _message(message: Mapping[str, Any]) -> Body:
    plain = {name: value for name, value in message.items() if name != _OF_MESSAGE}
    content = message.get("content")
    if isinstance(content, list):
        parts = [{k: v for k, v in part.items() if k != _OF_PART} for part in content]
        is_text = len(parts) == 1 and parts[0].keys() == {"type", "text"}
        plain["content"] = parts[0]["text"] if is_text else parts  # as most clients write it
    return plain
