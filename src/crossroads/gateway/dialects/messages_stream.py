"""Streams between the dialects ``chat`` and ``messages``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import orjson

from crossroads.gateway.call import Body, Event
from crossroads.gateway.dialects.messages_answer import (
    finish_reason,
    new_message_id,
    stop_reason,
    to_messages_usage,
    told_in_chat,
)
from crossroads.gateway.dialects.understanding import reads_answers


class MessagesToChat:
    """Turns the events of a message into chunks of ``chat``.

    The finish comes with ``message_delta``, and a last chunk without choices has the token counts.
    Errors and cut streams are the reader's business: nothing here says that an answer is whole.
    """

    def __init__(self) -> None:
        self._head: Body = {"object": "chat.completion.chunk", "created": int(time.time())}
        self._usage: Body = {}
        self._calls: dict[int, int] = {}  # content block -> tool call
        self._block: Body = {}  # of thinking, as it must be sent back
        self._has_arguments = False

    @reads_answers
    def feed(self, events: Sequence[Event]) -> list[Event]:
        """Return the chunks for a batch of events."""
        chunks: list[Event] = []
        for event in events:
            take = _TAKERS.get(event.get("type", ""))
            if take is not None:
                chunks += take(self, event)
        return chunks

    def _start(self, event: Event) -> list[Event]:
        message = event.get("message") or {}
        self._head["id"] = message.get("id")
        self._head["model"] = message.get("model")
        self._usage.update(message.get("usage") or {})
        return [self._chunk({"role": "assistant", "content": ""})]

    def _start_block(self, event: Event) -> list[Event]:
        block = event.get("content_block") or {}
        kind = block.get("type")
        if kind == "tool_use":
            number = self._calls.setdefault(event.get("index", 0), len(self._calls))
            given = block.get("input")
            self._has_arguments = bool(given)
            function = {
                "name": block.get("name"),
                "arguments": orjson.dumps(given).decode() if given else "",
            }
            call = {"index": number, "id": block.get("id"), "type": "function"}
            return [self._chunk({"tool_calls": [{**call, "function": function}]})]
        if kind in ("thinking", "redacted_thinking"):
            self._block = dict(block)
        elif kind == "text" and block.get("text"):
            return [self._chunk({"content": block["text"]})]
        return []

    def _continue_block(self, event: Event) -> list[Event]:
        delta = event.get("delta") or {}
        kind = delta.get("type")
        if kind == "text_delta":
            return [self._chunk({"content": delta.get("text") or ""})]
        if kind == "input_json_delta":
            return self._add_arguments(event.get("index", 0), delta.get("partial_json"))
        if kind == "thinking_delta":
            thought = delta.get("thinking") or ""
            self._block["thinking"] = self._block.get("thinking", "") + thought
            return [self._chunk({"reasoning_content": thought})]
        if kind == "signature_delta":
            self._block["signature"] = delta.get("signature")
        return []

    def _add_arguments(self, index: int, fragment: str | None) -> list[Event]:
        if not fragment or index not in self._calls:
            return []
        self._has_arguments = True
        call = {"index": self._calls[index], "function": {"arguments": fragment}}
        return [self._chunk({"tool_calls": [call]})]

    def _stop_block(self, event: Event) -> list[Event]:
        if self._block:
            block, self._block = self._block, {}
            return [self._chunk({"thinking_blocks": [block]})]
        if event.get("index", 0) in self._calls and not self._has_arguments:
            return self._add_arguments(event.get("index", 0), "{}")  # "" is no JSON
        return []

    def _finish(self, event: Event) -> list[Event]:
        delta = event.get("delta") or {}
        told = {k: v for k, v in (event.get("usage") or {}).items() if v is not None}
        self._usage.update(told)  # the counts are cumulative
        last = self._chunk({}, finish_reason(delta.get("stop_reason")))
        if delta.get("stop_sequence") is not None:
            last["choices"][0]["stop_reason"] = delta["stop_sequence"]
        told = told_in_chat(self._usage)
        return [last, {**self._head, "choices": [], **told}] if told else [last]

    def _chunk(self, delta: Body, finish: str | None = None) -> Event:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**self._head, "choices": [choice]}


_TAKERS = {
    "message_start": MessagesToChat._start,
    "content_block_start": MessagesToChat._start_block,
    "content_block_delta": MessagesToChat._continue_block,
    "content_block_stop": MessagesToChat._stop_block,
    "message_delta": MessagesToChat._finish,
}


class ChatToMessages:
    """Turns chunks of ``chat`` into the events of a message; of several choices, the first.

    Blocks come one after the other, as the API has them. Where fragments of parallel tool calls
    are mixed, those of later calls wait until the arguments of the one before are whole.

    Parameters
    ----------
    model : that answers
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._is_begun = False
        self._index = -1  # of the open block, or of the last one
        self._kind = ""  # of the open block
        self._call = -1  # of the open block, where it is one
        self._arguments: list[str] = []  # of the open call
        self._waiting: dict[int, Body] = {}  # calls whose turn has not come
        self._over: set[int] = set()  # calls whose block is closed
        self._has_calls = False
        self._finish: Any = None
        self._sequence: str | None = None
        self._usage: Any = None

    @reads_answers
    def feed(self, chunks: Sequence[Event]) -> list[Event]:
        """Return the events for a batch of chunks."""
        events: list[Event] = [] if self._is_begun else self._begin()
        for chunk in chunks:
            usage = chunk.get("usage")
            if usage:
                self._usage = usage
            for choice in chunk.get("choices") or ():
                if choice.get("index", 0) == 0:
                    self._take(choice, events)
        return events

    def end(self) -> list[Event]:
        """Return the last events of a whole answer."""
        events: list[Event] = [] if self._is_begun else self._begin()
        self._close(events)
        for number in list(self._waiting):
            self._open_call(number, self._waiting.pop(number), events)
            self._close(events)
        reason = stop_reason(self._finish, self._sequence)
        if self._has_calls and reason == "end_turn":
            reason = "tool_use"
        sequence = self._sequence if reason == "stop_sequence" else None
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        usage = to_messages_usage(self._usage)
        events.append({"type": "message_delta", "delta": delta, "usage": usage})
        events.append({"type": "message_stop"})
        return events

    def _begin(self) -> list[Event]:
        self._is_begun = True
        message: Body = {
            "id": new_message_id(),
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},  # known at the end
        }
        return [{"type": "message_start", "message": message}]

    def _take(self, choice: Body, events: list[Event]) -> None:
        delta = choice.get("delta") or {}
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        blocks = delta.get("thinking_blocks") or ()
        if isinstance(thought, str) and not blocks:
            self._add("thinking", {"type": "thinking_delta", "thinking": thought}, events)
        for block in blocks:
            self._sign(block, bool(thought), events)
        text = delta.get("content") or delta.get("refusal")
        if text:
            self._add("text", {"type": "text_delta", "text": text}, events)
        for number, fragment in enumerate(delta.get("tool_calls") or ()):
            self._take_call(fragment.get("index", number), fragment, events)
        if choice.get("finish_reason"):
            self._finish = choice["finish_reason"]
            sequence = choice.get("stop_reason")
            self._sequence = sequence if isinstance(sequence, str) else None

    def _add(self, kind: str, delta: Body, events: list[Event]) -> None:
        if self._kind != kind:
            empty = {"type": "text", "text": ""}
            if kind == "thinking":
                empty = {"type": "thinking", "thinking": "", "signature": ""}
            self._open(kind, empty, events)
        events.append({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _sign(self, block: Body, is_whole: bool, events: list[Event]) -> None:
        """Add the signature of thinking that was sent, or all of it; or what cannot be read."""
        if block.get("type") == "redacted_thinking":
            self._open("redacted_thinking", block, events)
            self._close(events)
            return
        if is_whole and block.get("thinking"):
            self._add("thinking", {"type": "thinking_delta", "thinking": block["thinking"]}, events)
        if block.get("signature"):
            delta = {"type": "signature_delta", "signature": block["signature"]}
            self._add("thinking", delta, events)
        self._close(events)

    def _take_call(self, number: int, fragment: Body, events: list[Event]) -> None:
        function = fragment.get("function") or {}
        if self._kind == "tool_use" and number == self._call:
            self._add_arguments(function.get("arguments"), events)
            return
        if number in self._over:  # an empty fragment after the end, as some servers send
            return
        if self._kind == "tool_use" and not self._is_whole():
            waiting = self._waiting.setdefault(number, {"name": "", "arguments": ""})
            waiting["id"] = fragment.get("id") or waiting.get("id")
            for name in ("name", "arguments"):
                waiting[name] += function.get(name) or ""
            return
        waiting = self._waiting.pop(number, {"name": "", "arguments": ""})
        call = {
            "id": fragment.get("id") or waiting.get("id"),
            "name": waiting["name"] + (function.get("name") or ""),
            "arguments": waiting["arguments"] + (function.get("arguments") or ""),
        }
        self._open_call(number, call, events)

    def _open_call(self, number: int, call: Body, events: list[Event]) -> None:
        block = {"type": "tool_use", "id": call["id"], "name": call["name"], "input": {}}
        self._open("tool_use", block, events)
        self._call = number
        self._arguments = []
        self._has_calls = True
        self._add_arguments(call["arguments"], events)

    def _add_arguments(self, fragment: str | None, events: list[Event]) -> None:
        if fragment:
            self._arguments.append(fragment)
            delta = {"type": "input_json_delta", "partial_json": fragment}
            events.append({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _is_whole(self) -> bool:
        """Whether the arguments of the open call are whole: then nothing more can come."""
        try:
            orjson.loads("".join(self._arguments))
        except orjson.JSONDecodeError:
            return False
        return True

    def _open(self, kind: str, block: Body, events: list[Event]) -> None:
        self._close(events)
        self._index += 1
        self._kind = kind
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        events.append(start)

    def _close(self, events: list[Event]) -> None:
        if self._kind:
            events.append({"type": "content_block_stop", "index": self._index})
        if self._kind == "tool_use":
            self._over.add(self._call)
        self._kind, self._call = "", -1
