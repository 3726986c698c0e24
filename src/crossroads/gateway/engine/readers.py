"""Readers of streams: what the events of an answer said so far, in each dialect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import orjson

from crossroads.gateway.call import Body, Dialect, Event
from crossroads.gateway.contracts import Usage
from crossroads.gateway.engine.answers import messages_finish, responses_finish
from crossroads.gateway.engine.chat_reader import ChatReader
from crossroads.gateway.vocabulary import chat_usage, messages_usage, responses_usage


class Reader(Protocol):
    """Notes the events a client gets.

    Attributes
    ----------
    is_plain : whether all it consists of is one text, so that another model can go on with it
    """

    is_plain: bool

    def note(self, events: Sequence[Event]) -> None: ...

    @property
    def finish(self) -> str | None:
        """Why the answer ended, in the words of ``chat``; None while it did not."""
        ...

    @property
    def usage(self) -> Usage | None:
        """As told by the upstream."""
        ...

    @property
    def text(self) -> str:
        """The text so far."""
        ...

    @property
    def size(self) -> int:
        """Characters produced so far, tool calls and thoughts included."""
        ...

    def answer(self) -> Body | None:
        """Return the whole answer the events amount to."""
        ...


def reader_of(dialect: Dialect) -> Reader:
    """Return a reader for the stream of one answer; ``embeddings`` do not stream."""
    return _READERS[dialect]()


class CompletionsReader:
    """Reads chunks of ``text_completion``."""

    __slots__ = ("_answer", "_finish", "_parts", "_usage", "is_plain")

    def __init__(self) -> None:
        self._answer: Body | None = None
        self._parts: dict[int, list[str]] = {}
        self._finish: dict[int, str] = {}
        self._usage: dict[str, Any] | None = None
        self.is_plain = True

    def note(self, events: Sequence[Event]) -> None:
        for event in events:
            if self._answer is None:
                self._answer = {key: event.get(key) for key in ("id", "object", "created", "model")}
            for choice in event.get("choices") or ():
                index = choice.get("index") or 0
                if index or choice.get("logprobs"):
                    self.is_plain = False
                text = choice.get("text")
                if text.__class__ is str:
                    self._parts.setdefault(index, []).append(text)
                if choice.get("finish_reason") is not None:
                    self._finish[index] = choice["finish_reason"]
            self._usage = event.get("usage") or self._usage

    @property
    def finish(self) -> str | None:
        return self._finish.get(0)

    @property
    def usage(self) -> Usage | None:
        return chat_usage(self._usage)

    @property
    def text(self) -> str:
        return "".join(self._parts.get(0, ()))

    @property
    def size(self) -> int:
        return sum(len(part) for parts in self._parts.values() for part in parts)

    def answer(self) -> Body | None:
        if self._answer is None:
            return None
        indices = sorted(self._parts.keys() | self._finish.keys())
        choices = [
            {
                "index": index,
                "text": "".join(self._parts.get(index, ())),
                "finish_reason": self._finish.get(index),
            }
            for index in indices
        ]
        usage = {"usage": self._usage} if self._usage else {}
        return {**self._answer, "choices": choices, **usage}


class ResponsesReader:
    """Reads the events of a response; the last of them holds the whole answer."""

    __slots__ = ("_parts", "_response", "_size", "is_plain")

    def __init__(self) -> None:
        self._response: Body = {}
        self._parts: list[str] = []
        self._size = 0
        self.is_plain = False  # items have ids of the upstream's own: nobody else can go on

    def note(self, events: Sequence[Event]) -> None:
        for event in events:
            delta = event.get("delta")
            if delta.__class__ is str:
                self._size += len(delta)
                if event.get("type") == "response.output_text.delta":
                    self._parts.append(delta)
            response = event.get("response")
            if response.__class__ is dict:
                self._response = response

    @property
    def finish(self) -> str | None:
        return responses_finish(self._response)

    @property
    def usage(self) -> Usage | None:
        return responses_usage(self._response.get("usage"))

    @property
    def text(self) -> str:
        return "".join(self._parts)

    @property
    def size(self) -> int:
        return self._size

    def answer(self) -> Body | None:
        return self._response or None


class MessagesReader:
    """Reads the events of a message."""

    __slots__ = ("_blocks", "_is_open", "_message", "_texts", "_usage", "is_plain")

    def __init__(self) -> None:
        self._message: Body = {}
        self._usage: dict[str, Any] = {}
        self._blocks: dict[Any, dict[str, Any]] = {}
        self._texts: dict[
            Any, list[str]
        ] = {}  # by block: text, thoughts, or JSON of a tool's input
        self._is_open = False
        self.is_plain = True

    def note(self, events: Sequence[Event]) -> None:
        for event in events:
            note = _MESSAGES_EVENTS.get(event.get("type", ""))
            if note is not None:
                note(self, event)

    @property
    def has_open_block(self) -> bool:
        """Whether a block was begun and not ended."""
        return self._is_open

    @property
    def finish(self) -> str | None:
        return messages_finish(self._message.get("stop_reason"))

    @property
    def usage(self) -> Usage | None:
        return messages_usage(self._usage)

    @property
    def text(self) -> str:
        of_text = (i for i, block in self._blocks.items() if block.get("type") == "text")
        return "".join(part for index in of_text for part in self._texts[index])

    @property
    def size(self) -> int:
        return sum(len(part) for parts in self._texts.values() for part in parts)

    def answer(self) -> Body | None:
        if not self._message:
            return None
        content = [self._whole(index) for index in sorted(self._blocks)]
        return {**self._message, "content": content, "usage": self._usage}

    def _start(self, event: Event) -> None:
        self._message = dict(event.get("message") or {})
        self._note_usage(self._message.get("usage"))

    def _start_block(self, event: Event) -> None:
        self._is_open = True
        self._begin(event.get("index", 0), dict(event.get("content_block") or {}))

    def _begin(self, index: Any, block: dict[str, Any]) -> None:
        field = _BLOCK_TEXTS.get(block.get("type", ""), "")
        given = block.get(field)
        self._blocks[index] = block
        self._texts[index] = [given] if isinstance(given, str) else []
        if block.get("type") != "text" or len(self._blocks) > 1:
            self.is_plain = False

    def _note_delta(self, event: Event) -> None:
        index = event.get("index", 0)
        if index not in self._blocks:
            self._begin(index, {"type": "text", "text": ""})
        delta = event.get("delta") or {}
        kind = delta.get("type", "")
        part = delta.get(_DELTA_TEXTS.get(kind, ""))
        if part.__class__ is str:
            self._texts[index].append(part)
        elif kind == "signature_delta":
            self._blocks[index]["signature"] = delta.get("signature")
        elif kind == "citations_delta":
            block = self._blocks[index]
            block["citations"] = [*(block.get("citations") or ()), delta.get("citation")]
            self.is_plain = False

    def _stop_block(self, _: Event) -> None:
        self._is_open = False
        self.is_plain = False  # whoever went on would begin a second text

    def _note_end(self, event: Event) -> None:
        self._message.update(event.get("delta") or {})
        self._note_usage(event.get("usage"))

    def _note_usage(self, given: Any) -> None:
        if isinstance(given, dict):
            self._usage.update({key: n for key, n in given.items() if n is not None})

    def _whole(self, index: Any) -> dict[str, Any]:
        block, joined = self._blocks[index], "".join(self._texts[index])
        field = _BLOCK_TEXTS.get(block.get("type", ""), "")
        if field and field != "input":
            return {**block, field: joined}
        if not joined:
            return block
        try:
            return {**block, "input": orjson.loads(joined)}
        except orjson.JSONDecodeError:
            return {**block, "input": joined}  # cut by the token limit: given as it came


_BLOCK_TEXTS = {"text": "text", "thinking": "thinking", "tool_use": "input"}
_DELTA_TEXTS = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "input_json_delta": "partial_json",
}

_MESSAGES_EVENTS: dict[str, Callable[[MessagesReader, Event], None]] = {
    "message_start": MessagesReader._start,
    "content_block_start": MessagesReader._start_block,
    "content_block_delta": MessagesReader._note_delta,
    "content_block_stop": MessagesReader._stop_block,
    "message_delta": MessagesReader._note_end,
}

_READERS: dict[Dialect, Callable[[], Reader]] = {
    "chat": ChatReader,
    "completions": CompletionsReader,
    "responses": ResponsesReader,
    "messages": MessagesReader,
}
