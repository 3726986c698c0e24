"""Server-sent events, read from bytes that arrive in any portions.

Follows the event-stream format of the WHATWG HTML standard as far as chat streams use it: fields
``data`` and ``event``, comments, and the three line endings. ``id`` and ``retry`` are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its ``data`` lines joined by new lines, and its name (empty if unnamed)."""

    data: str
    name: str = ""


class EventTooLargeError(ValueError):
    """An event grew past the limit without ending."""


class EventReader:
    """Turns portions of bytes into events; a character or an event may span portions."""

    def __init__(self, *, max_event_bytes: int = 16 << 20) -> None:
        self._max = max_event_bytes
        self._line = bytearray()  # the unfinished last line
        self._data: list[bytes] = []
        self._name = b""
        self._size = 0  # bytes in self._data
        self._skip_newline = False  # the last portion ended in \r: a \n now belongs to it
        self._at_start = True

    def feed(self, portion: bytes) -> list[Event]:
        """Take the next portion and return the events it completes. Raises EventTooLargeError."""
        if not portion:
            return []
        if self._skip_newline and portion.startswith(b"\n"):
            portion = portion[1:]
        self._skip_newline = portion.endswith(b"\r")
        if b"\r" in portion:
            portion = portion.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = portion.split(b"\n")
        events = []
        for line in lines:
            whole = bytes(self._line) + line
            self._line.clear()
            event = self._take(whole)
            if event is not None:
                events.append(event)
        self._line += rest
        self._check(self._size + len(self._line))
        return events

    def flush(self) -> list[Event]:
        """Return the event the stream ended in the middle of, if any.

        The standard drops it; servers that forget the last empty line after ``[DONE]`` are common
        enough to look at it.
        """
        last = [self._take(bytes(self._line)), self._take(b"")]
        self._line.clear()
        return [event for event in last if event is not None]

    def _take(self, line: bytes) -> Event | None:
        """Take one whole line; return the event if the line ends it."""
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._end()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(value)
            self._check(self._size)
        elif field == b"event":
            self._name = value
        return None

    def _check(self, size: int) -> None:
        if size > self._max:
            raise EventTooLargeError(f"an event of more than {self._max} bytes")

    def _end(self) -> Event | None:
        data, name = self._data, self._name
        self._data, self._name, self._size = [], b"", 0
        if not data:
            return None
        return Event(b"\n".join(data).decode("utf-8", "replace"), name.decode("utf-8", "replace"))
