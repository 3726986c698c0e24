"""What the chunks of a chat stream said so far."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from crossroads.gateway.call import Body, Event
from crossroads.gateway.contracts import Usage
from crossroads.gateway.vocabulary import chat_usage
from crossroads.prompts.experts.base import new_completion_id

_TEXTS = ("reasoning_content", "reasoning", "refusal")  # of a delta, joined like the content


class ChatReader:
    """Reads ``chat.completion.chunk`` objects; see ``Reader``."""

    __slots__ = ("_choices", "_first", "_first_event", "_usage", "is_plain")

    def __init__(self) -> None:
        self._first = _Choice()
        self._choices = {0: self._first}
        self._first_event: Event | None = None
        self._usage: dict[str, Any] | None = None
        self.is_plain = True

    def note(self, events: Sequence[Event]) -> None:
        if self._first_event is None and events:
            self._first_event = events[0]
        first = self._first
        for event in events:
            for choice in event.get("choices") or ():
                index = choice.get("index")
                into = self._other(index) if index else first
                delta = choice.get("delta")
                if delta:
                    content = delta.get("content")
                    if content.__class__ is str:
                        into.parts.append(content)
                    if len(delta) > 1 or content is None:
                        self._note_rest(into, delta)
                finish = choice.get("finish_reason")
                if finish is not None:
                    into.finish = finish
                if choice.get("logprobs"):
                    into.add_logprobs(choice["logprobs"])
            usage = event.get("usage")
            if usage:
                self._usage = usage

    @property
    def finish(self) -> str | None:
        return self._first.finish

    @property
    def usage(self) -> Usage | None:
        return chat_usage(self._usage)

    @property
    def text(self) -> str:
        return self._first.text

    @property
    def size(self) -> int:
        return sum(choice.size for choice in self._choices.values())

    def answer(self) -> Body | None:
        first = self._first_event or {}
        kept = ("system_fingerprint", "service_tier", "provider")
        answer: Body = {
            "id": first.get("id") or new_completion_id(),
            "object": "chat.completion",
            "created": first.get("created") or int(time.time()),
            "model": first.get("model"),
            **{key: first[key] for key in kept if key in first},
            "choices": [self._choices[i].whole(i) for i in sorted(self._choices)],
        }
        if self._usage:
            answer["usage"] = self._usage
        return answer

    def _other(self, index: Any) -> _Choice:
        self.is_plain = False
        return self._choices.setdefault(index if isinstance(index, int) else 0, _Choice())

    def _note_rest(self, into: _Choice, delta: Mapping[str, Any]) -> None:
        """Note all of a delta but its text. What is unknown here makes an answer not plain."""
        for key, value in delta.items():
            if key in ("role", "content") or not value:
                continue
            self.is_plain = False
            if key == "tool_calls":
                for fragment in value:
                    into.add_tool_call(fragment)
            elif key in _TEXTS and isinstance(value, str):
                into.more[key] = into.more.get(key, "") + value
            else:
                into.more[key] = value


class _Choice:
    """One choice of an answer, put together from its deltas."""

    __slots__ = ("calls", "finish", "logprobs", "more", "parts")

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.finish: str | None = None
        self.calls: dict[int, dict[str, Any]] = {}
        self.more: dict[str, Any] = {}
        self.logprobs: dict[str, list[Any]] = {}

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def size(self) -> int:
        texts = [value for value in self.more.values() if isinstance(value, str)]
        functions = [call["function"] for call in self.calls.values()]
        texts += [function["name"] + function["arguments"] for function in functions]
        return sum(map(len, self.parts)) + sum(map(len, texts))

    def add_tool_call(self, fragment: Mapping[str, Any]) -> None:
        function = fragment.get("function") or {}
        call = self.calls.setdefault(
            fragment.get("index") or 0,
            {"id": None, "type": "function", "function": {"name": "", "arguments": ""}},
        )
        call["id"] = fragment.get("id") or call["id"]
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""

    def add_logprobs(self, given: Mapping[str, Any]) -> None:
        for key, entries in given.items():
            if isinstance(entries, list):
                self.logprobs.setdefault(key, []).extend(entries)

    def whole(self, index: int) -> dict[str, Any]:
        """Return the choice of the whole answer."""
        text = self.text
        message = {
            "role": "assistant",
            "content": text or (None if self.calls else ""),
            **self.more,
        }
        if self.calls:
            message["tool_calls"] = [self.calls[i] for i in sorted(self.calls)]
        choice = {"index": index, "message": message, "finish_reason": self.finish}
        if self.logprobs:
            choice["logprobs"] = self.logprobs
        return choice
