"""The surface ``/v1/chat/completions``: the gateway's own dialect, and its hot path."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from crossroads.gateway.call import Body, Call, Client, Dialect, Event
from crossroads.gateway.dialects.events import DONE, unnamed
from crossroads.gateway.dialects.reading import (
    OWN_FIELD,
    is_stream,
    load,
    model_of,
    own_headers,
    wrong,
)
from crossroads.gateway.dialects.understanding import reads_answers
from crossroads.gateway.errors import ApiError
from crossroads.prompts.experts.base import new_completion_id, wants_usage


class ChatSurface:
    """Chat completions, as JSON and as a stream of chunks that ends with ``[DONE]``."""

    dialect: Dialect = "chat"

    def parse(self, body: bytes, *, client: Client, headers: Mapping[bytes, bytes]) -> Call:
        """Return the call. Raises ApiError 400 naming the field that is wrong."""
        request = load(body)
        model = model_of(request)
        check_messages(request)
        if OWN_FIELD in request:
            headers = own_headers(request, headers)
        return Call(
            dialect="chat",
            model=model,
            body=request,
            is_stream=is_stream(request),
            size=len(body),
            client=client,
            headers=headers,
        )

    @reads_answers
    def render(self, call: Call, model: str, dialect: Dialect, answer: Body) -> bytes:
        """Return the JSON of a ``chat.completion`` that names the model that answered."""
        return orjson.dumps(normal_completion(answer, model))

    def writer(self, call: Call, model: str, dialect: Dialect) -> ChatWriter:
        """Return what writes the chunks of one answer."""
        return ChatWriter(model, wants_usage=wants_usage(call.body))

    def error(self, error: ApiError, request_id: str) -> bytes:
        """Return OpenAI's error object."""
        return error.body

    def status(self, error: ApiError) -> int:
        """Return the error's own status."""
        return error.status


def check_messages(request: Body) -> None:
    """Check that ``messages`` is a list of objects. Raises ApiError 400."""
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "a list of at least one message", messages)
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise wrong(f"messages[{number}]", "an object with role and content", message)


def normal_completion(answer: Body, model: str) -> Body:
    """Return a foreign answer with all that OpenAI's clients rely on."""
    choices = answer.get("choices") or []
    return {
        **answer,
        "id": answer.get("id") or new_completion_id(),
        "object": "chat.completion",
        "created": answer.get("created") or int(time.time()),
        "model": model,
        "choices": [_whole_choice(choice, number) for number, choice in enumerate(choices)],
    }


def _whole_choice(choice: Body, number: int) -> Body:
    message = choice.get("message") or {}
    if "role" in message and "index" in choice and "finish_reason" in choice:
        return choice
    message = {"role": "assistant", "content": None, **message}
    return {"index": number, "finish_reason": None, **choice, "message": message}


class ChatWriter:
    """Writes chunks: one id, the answering model, the role first and only once.

    Token counts come in one last chunk without choices, if they were asked for and are known.

    Parameters
    ----------
    model : that answers
    wants_usage : whether the client asked for token counts
    """

    __slots__ = ("_begun", "_identity", "_model", "_usage", "_wants_usage")

    def __init__(self, model: str, *, wants_usage: bool) -> None:
        self._model = model
        self._wants_usage = wants_usage
        self._identity: Body = {}
        self._begun: set[int] = set()
        self._usage: Any = None

    @reads_answers
    def feed(self, events: Sequence[Event]) -> bytes:
        """Return the bytes of a batch of chunks."""
        written: list[bytes] = []
        for chunk in events:
            usage = chunk.get("usage")
            if usage is not None:
                self._usage = usage
            choices = chunk.get("choices")
            if not choices and (usage is not None or not self._identity):
                continue  # token counts come at the end, and nothing comes before the role
            if not self._identity:
                self._identify(chunk)
            normal = {**chunk, **self._identity}
            if choices:
                normal["choices"] = self._normal(choices)
            else:
                normal["choices"] = []
            if usage is not None and not self._wants_usage:
                del normal["usage"]
            written.append(b"data: " + orjson.dumps(normal) + b"\n\n")
        return b"".join(written)

    def end(self) -> bytes:
        """Return the token counts, where they were asked for, and ``[DONE]``."""
        if not self._wants_usage or self._usage is None:
            return DONE
        if not self._identity:
            self._identify({})
        return unnamed({**self._identity, "choices": [], "usage": self._usage}) + DONE

    def fail(self, error: ApiError) -> bytes:
        """Return an error event. No ``[DONE]`` follows: the answer is not whole."""
        return b"data: " + error.body + b"\n\n"

    def _identify(self, chunk: Event) -> None:
        self._identity = {
            "id": chunk.get("id") or new_completion_id(),
            "object": "chat.completion.chunk",
            "created": chunk.get("created") or int(time.time()),
            "model": self._model,
        }
        if self._wants_usage:
            self._identity["usage"] = None

    def _normal(self, choices: list[Body]) -> list[Body]:
        """Return the choices as they are, where they are as they should be."""
        begun = self._begun
        for choice in choices:
            delta = choice.get("delta")
            if (
                choice.get("index") not in begun
                or "finish_reason" not in choice
                or not isinstance(delta, dict)
                or "role" in delta
                or "tool_calls" in delta
            ):
                return [self._mended(choice) for choice in choices]
        return choices

    def _mended(self, choice: Body) -> Body:
        index = choice.get("index") or 0
        delta = dict(choice.get("delta") or {})
        if index in self._begun:
            delta.pop("role", None)  # clients join what is repeated
        else:
            self._begun.add(index)
            delta = {"role": "assistant", **delta}
            if delta.get("content") is None:
                delta["content"] = ""
        calls = delta.get("tool_calls")
        if calls:
            delta["tool_calls"] = [
                call if "index" in call else {"index": number, **call}
                for number, call in enumerate(calls)
            ]
        return {"finish_reason": None, **choice, "index": index, "delta": delta}
