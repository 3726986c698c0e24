"""What every expert does: answer a chat request in OpenAI's chat-completion shape.

An expert is an HTTP endpoint, a language model in this process, or an exact tool. All of them take
the same request (plain data, as it came over the wire) and return the same response, so the
gateway, ``collect`` and a test treat them alike.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from typing import Any, Protocol

from crossroads.core.errors import UnavailableError

Request = Mapping[str, Any]
Completion = dict[str, Any]
Chunk = dict[str, Any]

_RETRY_STATUSES = frozenset({408, 409, 429})


class ExpertError(UnavailableError):
    """An expert did not answer, or refused the request.

    Attributes
    ----------
    status : HTTP status that describes the failure to the gateway's own client
    type, code, param : fields of OpenAI's error object
    retry_after : seconds the expert asked to wait, or None
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 502,
        type: str = "api_error",
        code: str | None = "upstream_error",
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.retry_after = retry_after

    @property
    def can_be_retried(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status >= 500 or self.status in _RETRY_STATUSES


class Expert(Protocol):
    """Something that answers chat requests. ``start`` before the first request, ``close`` last."""

    @property
    def name(self) -> str: ...

    async def start(self) -> None:
        """Load or connect. Raises CrossroadsError when the expert cannot work here."""
        ...

    async def complete(self, request: Request) -> Completion:
        """Return a ``chat.completion``. Raises ExpertError. Cancelling stops the work."""
        ...

    def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Yield ``chat.completion.chunk`` objects; ending normally means the answer is whole."""
        ...

    async def close(self) -> None: ...


def last_user_text(messages: Any) -> str:
    """Return the text of the last user message: what is routed, and what a tool answers.

    Of a message made of parts, the text parts are joined by new lines. Without any user message the
    last message counts; without text the result is empty.
    """
    if not isinstance(messages, list):
        return ""
    entries = [message for message in messages if isinstance(message, Mapping)]
    mine = [message for message in entries if message.get("role") == "user"] or entries
    return content_text(mine[-1].get("content")) if mine else ""


def content_text(content: Any) -> str:
    """Return the text of a message's content: a string, or a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (part.get("text") for part in content if isinstance(part, Mapping))
    return "\n".join(text for text in parts if isinstance(text, str))


def completion(
    text: str, *, model: str, finish_reason: str = "stop", usage: Mapping[str, Any] | None = None
) -> Completion:
    """Build a ``chat.completion`` with one choice."""
    message = {"role": "assistant", "content": text}
    return {
        "id": new_completion_id(),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": dict(usage) if usage is not None else usage_of(0, 0),
    }


def new_completion_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Build OpenAI's usage object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def wants_usage(request: Request) -> bool:
    """Whether a streaming request asked for a last chunk with token counts."""
    options = request.get("stream_options")
    return isinstance(options, Mapping) and options.get("include_usage") is True


def chunks_of(answer: Completion, *, include_usage: bool) -> Iterator[Chunk]:
    """Split a whole answer into the chunks a stream would have had: role, content, finish."""
    head = {key: answer.get(key) for key in ("id", "created", "model")}
    head["object"] = "chat.completion.chunk"
    if include_usage:
        head["usage"] = None
    for choice in answer.get("choices", []):
        message = dict(choice.get("message") or {})
        index = choice.get("index", 0)
        role = {"role": message.pop("role", "assistant"), "content": ""}
        delta = {key: value for key, value in message.items() if value is not None}
        finish = choice.get("finish_reason")
        for part, reason in ((role, None), (delta, None), ({}, finish)):
            yield {**head, "choices": [{"index": index, "delta": part, "finish_reason": reason}]}
    if include_usage:
        yield {**head, "choices": [], "usage": answer.get("usage")}


def assemble(chunks: Iterable[Chunk], *, model: str) -> Completion:
    """Join the chunks of a one-choice stream into a ``chat.completion``; the inverse of a stream.

    Tool calls are joined by index, log probabilities are concatenated.
    """
    text: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    logprobs: list[Any] = []
    finish: str | None = None
    usage: Mapping[str, Any] | None = None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", []):
            delta = choice.get("delta") or {}
            text.append(delta.get("content") or "")
            for fragment in delta.get("tool_calls") or []:
                _add_tool_call(calls, fragment)
            logprobs.extend((choice.get("logprobs") or {}).get("content") or [])
            finish = choice.get("finish_reason") or finish
    answer = completion("".join(text), model=model, finish_reason=finish or "stop", usage=usage)
    choice = answer["choices"][0]
    if calls:
        choice["message"]["tool_calls"] = [calls[index] for index in sorted(calls)]
    if logprobs:
        choice["logprobs"] = {"content": logprobs}
    return answer


def _add_tool_call(calls: dict[int, dict[str, Any]], fragment: Mapping[str, Any]) -> None:
    function = fragment.get("function") or {}
    call = calls.setdefault(
        fragment.get("index", 0),
        {"id": None, "type": "function", "function": {"name": "", "arguments": ""}},
    )
    call["id"] = fragment.get("id") or call["id"]
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""
