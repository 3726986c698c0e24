"""Joins the events of a continued answer to those the client already has.

The client sees one answer: one opening, one id, one finish, the usage of all parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from crossroads.gateway.call import Dialect, Event
from crossroads.gateway.contracts import Usage
from crossroads.gateway.engine.readers import MessagesReader, Reader
from crossroads.gateway.vocabulary import chat_usage, messages_usage
from crossroads.prompts.experts.base import ExpertError

_LEAST_ECHO = 8  # characters: a shorter text may be repeated by chance


class Splice(Protocol):
    """Rewrites the events of a continuation. ``usage``: what its upstream told of it alone."""

    usage: Usage | None

    def feed(self, events: Sequence[Event]) -> list[Event]: ...


def splice_of(dialect: Dialect, head: Event, reader: Reader, before: Usage) -> Splice:
    """Return the splice for an answer that began with ``head`` and of which ``reader`` read.

    ``before`` is what the earlier parts used.
    """
    if isinstance(reader, MessagesReader):
        return MessagesSplice(reader.text, before, is_open=reader.has_open_block)
    return ChatSplice(head, reader.text, before, is_chat=dialect == "chat")


class Echo:
    """Cuts from a continuation what it repeats of the text before it.

    Some servers answer a prefill with the prefill and its continuation; all get it without its last
    white space, and so may give that again.
    """

    __slots__ = ("_held", "_is_over", "_sent", "_tail")

    def __init__(self, text: str) -> None:
        sent = text.rstrip()
        self._tail = text[len(sent) :]
        self._sent = sent if len(sent) >= _LEAST_ECHO else ""
        self._held = ""
        self._is_over = not (self._sent or self._tail)

    def feed(self, piece: str) -> str:
        """Return what is new; nothing while the text so far may still be a repetition."""
        if self._is_over:
            return piece
        self._held += piece
        return self._cut(is_last=False)

    def end(self) -> str:
        """Return what was held back: no more will come."""
        return "" if self._is_over else self._cut(is_last=True)

    def _cut(self, *, is_last: bool) -> str:
        held, sent, tail = self._held, self._sent, self._tail
        if sent and len(held) < len(sent) and sent.startswith(held) and not is_last:
            return ""
        if sent and held.startswith(sent):
            held = held[len(sent) :]
        if len(held) < len(tail) and tail.startswith(held) and not is_last:
            return ""
        self._is_over = True
        return held[_common(held, tail) :]


class ChatSplice:
    """Splices chunks of ``chat`` and, by other field names, of ``completions``."""

    __slots__ = ("_before", "_echo", "_head", "_put", "_take", "usage")

    def __init__(self, head: Event, text: str, before: Usage, *, is_chat: bool = True) -> None:
        self._head: Event = {key: head[key] for key in ("id", "created", "model") if key in head}
        self._before = before
        self._echo = Echo(text)
        self._take, self._put = (_chat_text, _with_chat_text) if is_chat else (_text, _with_text)
        self.usage: Usage | None = None

    def feed(self, events: Sequence[Event]) -> list[Event]:
        spliced = (self._one(event) for event in events)
        return [event for event in spliced if event is not None]

    def _one(self, event: Event) -> Event | None:
        choices = [self._choice(choice) for choice in event.get("choices") or ()]
        kept = [choice for choice in choices if choice is not None]
        event = {**event, **self._head, "choices": kept}
        usage = event.get("usage")
        if usage:
            self.usage = chat_usage(usage)
            event["usage"] = _added(usage, self._before)
        return event if kept or usage else None

    def _choice(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        given = self._take(choice)
        text = self._echo.feed(given) if given else ""
        is_last = choice.get("finish_reason") is not None
        if is_last:
            text += self._echo.end()
        choice = self._put(choice, text)
        has_more = any((choice.get("delta") or {}).values()) or bool(choice.get("text"))
        return choice if has_more or is_last else None


class MessagesSplice:
    """Splices events of ``messages``: goes on in the block that is open, if one is."""

    __slots__ = ("_before", "_echo", "_is_open", "_told", "usage")

    def __init__(self, text: str, before: Usage, *, is_open: bool) -> None:
        self._before = before
        self._echo = Echo(text)
        self._is_open = is_open  # the client waits for more of block 0
        self._told: dict[str, Any] = {}
        self.usage: Usage | None = None

    def feed(self, events: Sequence[Event]) -> list[Event]:
        spliced: list[Event] = []
        for event in events:
            kind = event.get("type")
            if kind == "message_start":
                self._note((event.get("message") or {}).get("usage"))
            elif kind == "content_block_start" and self._is_open:
                self._check(event)
            elif kind == "content_block_delta":
                spliced += self._delta(event)
            elif kind == "content_block_stop":
                spliced += [*self._rest(), event]
            elif kind == "message_delta":
                spliced.append(self._end(event))
            else:
                spliced.append(event)
        return spliced

    def _check(self, event: Event) -> None:
        self._is_open = False
        if (event.get("content_block") or {}).get("type") != "text":
            raise ExpertError("the stream broke off and was not continued", code="upstream_cut")

    def _delta(self, event: Event) -> list[Event]:
        delta = event.get("delta") or {}
        if delta.get("type") != "text_delta":
            return [event]
        text = self._echo.feed(delta.get("text") or "")
        return [{**event, "delta": {**delta, "text": text}}] if text else []

    def _rest(self) -> list[Event]:
        text = self._echo.end()
        delta = {"type": "text_delta", "text": text}
        return [{"type": "content_block_delta", "index": 0, "delta": delta}] if text else []

    def _end(self, event: Event) -> Event:
        self._note(event.get("usage"))
        if self.usage is None:
            return event
        inputs = self.usage.input_tokens + self._before.input_tokens
        outputs = self.usage.output_tokens + self._before.output_tokens
        told = {**(event.get("usage") or {}), "input_tokens": inputs, "output_tokens": outputs}
        return {**event, "usage": told}

    def _note(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._told.update({key: n for key, n in usage.items() if n is not None})
            self.usage = messages_usage(self._told)


def _chat_text(choice: Mapping[str, Any]) -> str:
    content = (choice.get("delta") or {}).get("content")
    return content if isinstance(content, str) else ""


def _with_chat_text(choice: Mapping[str, Any], text: str) -> dict[str, Any]:
    given = choice.get("delta") or {}
    delta = {key: value for key, value in given.items() if key not in ("role", "content")}
    return {**choice, "delta": {**delta, "content": text} if text else delta}


def _text(choice: Mapping[str, Any]) -> str:
    text = choice.get("text")
    return text if isinstance(text, str) else ""


def _with_text(choice: Mapping[str, Any], text: str) -> dict[str, Any]:
    return {**choice, "text": text}


def _added(usage: Mapping[str, Any], before: Usage) -> dict[str, Any]:
    """Return OpenAI's usage object with what earlier parts used added."""
    told = chat_usage(usage)
    if told is None:
        return dict(usage)
    inputs = told.input_tokens + before.input_tokens
    outputs = told.output_tokens + before.output_tokens
    counts = {"prompt_tokens": inputs, "completion_tokens": outputs}
    return {**usage, **counts, "total_tokens": inputs + outputs}


def _common(one: str, other: str) -> int:
    """Return the length of the longest common beginning."""
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length
