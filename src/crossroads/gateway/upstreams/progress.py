"""What a stream has shown so far, to tell a whole one from one that was cut; per dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from crossroads.gateway.call import Dialect, Event
from crossroads.gateway.vocabulary import BROKEN_OFF


class MalformedEventError(ValueError):
    """An event that is not one of its dialect."""


class ReportedError(Exception):
    """An event that says the answer failed. ``given``: the error object."""

    def __init__(self, given: Any) -> None:
        super().__init__("reported")
        self.given = given


class Progress(Protocol):
    """Follows one stream."""

    num_events: int

    @property
    def is_over(self) -> bool:
        """Whether nothing may follow, so that nothing needs to be waited for."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether a stream that ends now has said everything."""
        ...

    def note(self, event: Event) -> None:
        """Take the next event. Raises MalformedEventError, ReportedError."""
        ...

    def done(self) -> None:
        """``[DONE]`` came."""
        ...


class Chunks:
    """``chat`` and ``completions``: whole after [DONE], or when every choice has finished.

    Parameters
    ----------
    num_choices : that were asked for
    """

    __slots__ = ("_finished", "_num_choices", "_open", "is_over", "num_events")

    def __init__(self, num_choices: int = 1) -> None:
        self.num_events = 0
        self._num_choices = num_choices
        self._open: set[int] = set()  # choices begun and not finished
        self._finished: set[int] = set()
        self.is_over = False

    def note(self, event: Event) -> None:
        choices = event.get("choices")
        if event.get("error"):
            raise ReportedError(event["error"])
        if type(choices) is not list:
            raise MalformedEventError("an event without choices in the stream")
        self.num_events += 1
        try:
            for choice in choices:
                delta = choice.get("delta")
                if delta is not None and type(delta) is not dict:
                    raise MalformedEventError("a choice whose delta is no object in the stream")
                finish = choice.get("finish_reason")
                if finish in BROKEN_OFF:
                    raise MalformedEventError(f"the upstream gave the answer up ({finish!r})")
                if finish is None:
                    self._open.add(choice.get("index", 0))
                else:
                    index = choice.get("index", 0)
                    self._open.discard(index)
                    self._finished.add(index)
        except (AttributeError, TypeError) as error:
            raise MalformedEventError("a choice that is none in the stream") from error

    def done(self) -> None:
        self.is_over = True

    @property
    def is_whole(self) -> bool:
        return self.is_over or (len(self._finished) >= self._num_choices and not self._open)


class Typed:
    """``responses`` and ``messages``: whole after the one event that ends an answer."""

    __slots__ = ("_last", "is_over", "num_events")

    def __init__(self, last: frozenset[str]) -> None:
        self._last = last
        self.num_events = 0
        self.is_over = False

    def note(self, event: Event) -> None:
        kind = event.get("type")
        if kind == "error":
            raise ReportedError(event.get("error") or event)
        if kind == "response.failed":
            response = event.get("response")
            raise ReportedError(response.get("error") if isinstance(response, dict) else None)
        if type(kind) is not str:
            if event.get("error"):
                raise ReportedError(event["error"])
            raise MalformedEventError("an event without a type in the stream")
        self.num_events += 1
        if kind in self._last:
            self.is_over = True

    def done(self) -> None:
        """Some servers add [DONE] here, too; it does not make an answer whole."""

    @property
    def is_whole(self) -> bool:
        return self.is_over


_LAST_RESPONSES = frozenset({"response.completed", "response.incomplete"})
_LAST_MESSAGES = frozenset({"message_stop"})


def num_choices(body: Mapping[str, Any]) -> int:
    """Return how many answers a request of ``chat`` or ``completions`` asks for."""
    value = body.get("n")
    return value if type(value) is int and value > 1 else 1


def progress_of(dialect: Dialect, body: Mapping[str, Any]) -> Progress:
    """Return what follows the stream that answers a request in this dialect."""
    if dialect == "responses":
        return Typed(_LAST_RESPONSES)
    if dialect == "messages":
        return Typed(_LAST_MESSAGES)
    return Chunks(num_choices(body))
