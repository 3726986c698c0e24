"""Streams of ``chat`` as event sequences of the dialect ``responses``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from crossroads.gateway.call import Body, Event
from crossroads.gateway.dialects.responses_answer import (
    call_item,
    failed,
    finished,
    logprobs_of,
    message_item,
    new_response,
    reasoning_item,
    text_part,
    why_incomplete,
)


@dataclass(slots=True)
class _Item:
    """An item of the output that is being written."""

    index: int
    id: str
    kind: str  # reasoning, message, refusal or function_call
    call_id: str = ""
    name: str = ""
    fragments: list[str] = field(default_factory=list)
    logprobs: list[Body] = field(default_factory=list)

    def add(self, fragment: Any) -> None:
        if not isinstance(fragment, str):
            raise TypeError(f"a fragment of text that is {type(fragment).__name__}")
        self.fragments.append(fragment)

    @property
    def text(self) -> str:
        return "".join(self.fragments)

    def part(self) -> Body:
        """Return the one part of a message or of thoughts."""
        if self.kind == "message":
            return text_part(self.text, self.logprobs)
        if self.kind == "refusal":
            return {"type": "refusal", "refusal": self.text}
        return {"type": "reasoning_text", "text": self.text}

    def whole(self, status: str) -> Body:
        """Return the item as it stands."""
        if self.kind == "function_call":
            return call_item(self.id, self.call_id, self.name, self.text, status)
        if self.kind == "reasoning":
            return reasoning_item(self.id, self.text, status)
        return message_item(self.id, [self.part()], status)


_PREFIXES = {"reasoning": "rs", "message": "msg", "refusal": "msg", "function_call": "fc"}
_EVENTS = {"reasoning": "reasoning_text", "message": "output_text", "refusal": "refusal"}


class ChatToResponses:
    """Turns chunks of ``chat`` into the events of a response; of several choices, the first.

    Parameters
    ----------
    request : as the client sent it; the response repeats parts of it
    model : that answers

    Attributes
    ----------
    response : as of the last event
    """

    def __init__(self, request: Mapping[str, Any], model: str) -> None:
        self.response = new_response(request, model)
        self._number = 0
        self._tag = self.response["id"][-16:]
        self._output: list[Body | None] = []  # by index; None while the item is open
        self._open: _Item | None = None  # thoughts, a message or a refusal
        self._calls: dict[int, _Item] = {}  # open calls by their index in chat
        self._finish: Any = None
        self._usage: Any = None

    def feed(self, chunks: Sequence[Event]) -> list[Event]:
        """Return the events for a batch of chunks."""
        events = self._begin()
        for chunk in chunks:
            self._usage = chunk.get("usage") or self._usage
            for choice in chunk.get("choices") or ():
                if (choice.get("index") or 0) == 0:
                    self._take(choice, events)
        return events

    def end(self) -> list[Event]:
        """Return the last events of a whole answer."""
        events = self._begin()
        self._close_all(events)
        output = [item for item in self._output if item is not None]
        self.response = finished(self.response, output, self._finish, self._usage)
        self._say(events, f"response.{self.response['status']}", response=self.response)
        return events

    def fail(
        self, *, code: str | None, message: str, param: str | None, is_limit: bool
    ) -> list[Event]:
        """Return the events that say that the answer is not whole."""
        events = self._begin()
        self._say(events, "error", code=code, message=message, param=param)
        output = [item for item in self._output if item is not None]
        word = "rate_limit_exceeded" if is_limit else "server_error"
        self.response = failed(self.response, output, code=word, message=message)
        self._say(events, "response.failed", response=self.response)
        return events

    def _begin(self) -> list[Event]:
        events: list[Event] = []
        if self._number == 0:
            self._say(events, "response.created", response=self.response)
            self._say(events, "response.in_progress", response=self.response)
        return events

    def _say(self, events: list[Event], type: str, **fields: Any) -> None:
        events.append({"type": type, "sequence_number": self._number, **fields})
        self._number += 1

    def _take(self, choice: Body, events: list[Event]) -> None:
        delta = choice.get("delta") or {}
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(thought, str):
            self._add("reasoning", thought, events)
        if delta.get("content"):
            self._add("message", delta["content"], events, logprobs_of(choice.get("logprobs")))
        if delta.get("refusal"):
            self._add("refusal", delta["refusal"], events)
        for number, fragment in enumerate(delta.get("tool_calls") or ()):
            self._add_to_call(fragment.get("index", number), fragment, events)
        self._finish = choice.get("finish_reason") or self._finish

    def _add(
        self, kind: str, text: str, events: list[Event], logprobs: list[Body] | None = None
    ) -> None:
        item = self._open
        if item is None or item.kind != kind:
            self._close(events)
            item = self._open = self._new(kind)
            self._added(item, events)
            place = {"item_id": item.id, "output_index": item.index, "content_index": 0}
            self._say(events, "response.content_part.added", **place, part=item.part())
        item.add(text)
        place = {"item_id": item.id, "output_index": item.index, "content_index": 0}
        more: Body = {}
        if kind == "message":
            more["logprobs"] = logprobs or []
            item.logprobs += more["logprobs"]
        self._say(events, f"response.{_EVENTS[kind]}.delta", **place, delta=text, **more)

    def _new(self, kind: str) -> _Item:
        index = len(self._output)
        self._output.append(None)
        return _Item(index=index, id=f"{_PREFIXES[kind]}_{self._tag}{index}", kind=kind)

    def _added(self, item: _Item, events: list[Event]) -> None:
        whole = item.whole("in_progress")
        if item.kind != "function_call":
            whole["content"] = []
        self._say(events, "response.output_item.added", output_index=item.index, item=whole)

    def _add_to_call(self, number: int, fragment: Body, events: list[Event]) -> None:
        function = fragment.get("function") or {}
        item = self._calls.get(number)
        if item is None:
            self._close(events)
            self._close_whole_calls(events)
            item = self._calls[number] = self._new("function_call")
            item.call_id = fragment.get("id") or item.id
            item.name = function.get("name") or ""
            self._added(item, events)
        arguments = function.get("arguments")
        if arguments:
            item.add(arguments)
            place = {"item_id": item.id, "output_index": item.index}
            self._say(events, "response.function_call_arguments.delta", **place, delta=arguments)

    def _close_whole_calls(self, events: list[Event]) -> None:
        """Close calls whose arguments are whole when the next call begins, as the API does."""
        for item in self._calls.values():
            if self._output[item.index] is None and _is_json(item.text):
                self._close_call(item, "completed", events)

    def _close(self, events: list[Event], status: str = "completed") -> None:
        item, self._open = self._open, None
        if item is None:
            return
        place = {"item_id": item.id, "output_index": item.index, "content_index": 0}
        text: Body = {"refusal" if item.kind == "refusal" else "text": item.text}
        if item.kind == "message":
            text["logprobs"] = item.logprobs
        self._say(events, f"response.{_EVENTS[item.kind]}.done", **place, **text)
        self._say(events, "response.content_part.done", **place, part=item.part())
        self._done(item, status, events)

    def _close_call(self, item: _Item, status: str, events: list[Event]) -> None:
        place = {"item_id": item.id, "output_index": item.index}
        more = {"name": item.name, "arguments": item.text}
        self._say(events, "response.function_call_arguments.done", **place, **more)
        self._done(item, status, events)

    def _done(self, item: _Item, status: str, events: list[Event]) -> None:
        whole = self._output[item.index] = item.whole(status)
        self._say(events, "response.output_item.done", output_index=item.index, item=whole)

    def _close_all(self, events: list[Event]) -> None:
        status = "incomplete" if why_incomplete(self._finish) else "completed"
        self._close(events, status)
        for item in self._calls.values():
            if self._output[item.index] is None:
                self._close_call(item, status, events)


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
