"""The data of server-sent events, out of bytes that arrive in any portions.

Follows the event-stream format of the WHATWG HTML standard (the three line endings, comments, data
over several lines) as far as what relays needs it: names of events are skipped, since every
dialect repeats them inside its data, and portions of whole events take a short way.
"""

from __future__ import annotations

_BOM = b"\xef\xbb\xbf"


class EventTooLargeError(ValueError):
    """An event grew past the limit without ending."""


class DataReader:
    """Turns portions of bytes into the data of events.

    Parameters
    ----------
    max_event_bytes : longest event that is read
    """

    __slots__ = ("_at_start", "_data", "_is_between", "_line", "_max", "_size", "_skip_newline")

    def __init__(self, *, max_event_bytes: int) -> None:
        self._max = max_event_bytes
        self._line = bytearray()  # the unfinished last line
        self._data: list[bytes] = []  # of the unfinished last event
        self._size = 0  # bytes in both
        self._skip_newline = False  # the last portion ended in \r: a \n now belongs to it
        self._at_start = True
        self._is_between = True  # the last portion ended together with an event

    def feed(self, portion: bytes) -> list[bytes]:
        """Return the data of the events this portion ends. Raises EventTooLargeError."""
        if self._is_between and portion.startswith(b"data: ") and portion.endswith(b"\n\n"):
            num_lines = portion.count(b"\n")
            blocks = [portion[6:-2]] if num_lines == 2 else portion[6:-2].split(b"\n\ndata: ")
            # One line each, or it takes the long way.
            if num_lines == 2 * len(blocks) and b"\r" not in portion:
                self._at_start = False
                if len(portion) > self._max:
                    self._check_all(blocks)
                return blocks
        return self._feed_lines(portion)

    def flush(self) -> list[bytes]:
        """Return the data of the event the stream ended in the middle of, if any.

        The standard drops it; servers that forget the last empty line are common enough to look.
        """
        last = [self._take(bytes(self._line)), self._take(b"")]
        self._line.clear()
        return [data for data in last if data is not None]

    def _feed_lines(self, portion: bytes) -> list[bytes]:
        if not portion:
            return []
        if self._skip_newline and portion.startswith(b"\n"):
            portion = portion[1:]
        self._skip_newline = portion.endswith(b"\r")
        if b"\r" in portion:
            portion = portion.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = portion.split(b"\n")
        datas = []
        for line in lines:
            if self._line:
                self._line += line
                line = bytes(self._line)  # noqa: PLW2901
                self._line.clear()
            data = self._take(line)
            if data is not None:
                datas.append(data)
        self._line += rest
        self._check(self._size + len(self._line))
        self._is_between = not self._line and not self._data and not self._skip_newline
        return datas

    def _take(self, line: bytes) -> bytes | None:
        """Take one whole line; return the event's data if the line ends it."""
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._end()
        field, _, value = line.partition(b":")
        if field == b"data":
            value = value.removeprefix(b" ")
            self._data.append(value)
            self._size += len(value)
            self._check(self._size)
        return None

    def _end(self) -> bytes | None:
        data, self._data, self._size = self._data, [], 0
        if not data:
            return None
        return data[0] if len(data) == 1 else b"\n".join(data)

    def _check(self, size: int) -> None:
        if size > self._max:
            raise EventTooLargeError(f"an event of more than {self._max} bytes")

    def _check_all(self, blocks: list[bytes]) -> None:
        for block in blocks:
            self._check(len(block))
