"""Events out of bytes in any portions."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.http.sse import DataReader, EventTooLargeError

STREAMS = [
    b'data: {"a":1}\n\ndata: {"b":2}\n\ndata: [DONE]\n\n',
    b'data:{"a":1}\r\n\r\ndata: {"b":2}\r\n\r\n',
    b"data: a\r\rdata: b\r\r",
    b": ping\n\ndata: a\n\n: ping\n\nevent: x\ndata: b\nid: 7\n\n",
    b"data: a\ndata: b\n\ndata: c\n\n",
    b"\xef\xbb\xbfdata: a\n\ndata: b\n\n",
    "data: Zw\u00f6lf Bl\u00fcten \U0001f33c\n\n".encode(),
    b"data\n\ndata:\n\ndata: \n\ndata:  x\n\n",
    b"data: a\n\n\n\n\ndata: b\n\n",
    b"data: a\n\ndata: half",
    b"data: a\n\nevent: y\n\ndata: data: b\n\n",
    b"retry: 5\ndata: a\n\n",
]
_LINE = st.sampled_from(
    [
        b"data: x",
        b"data:y",
        b"data",
        b": c",
        b"event: e",
        b"",
        b"",
        b"data: data: ",
        b"\xef\xbb\xbf",
    ]
)
_TEXTS = st.lists(st.tuples(_LINE, st.sampled_from([b"\n", b"\r\n", b"\r"]))).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


def read(portions: list[bytes]) -> list[bytes]:
    reader = DataReader(max_event_bytes=1000)
    datas = [data for portion in portions for data in reader.feed(portion)]
    return datas + reader.flush()


def read_plainly(raw: bytes) -> list[bytes]:
    """Read a whole text line by line, as the standard says: the reference."""
    found: list[bytes] = []
    lines: list[bytes] = []  # of the data of the event that is being read
    for line in (*re.split(rb"\r\n|\r|\n", raw.removeprefix(b"\xef\xbb\xbf")), b""):
        name, _, value = line.partition(b":")
        if line and name == b"data":
            lines.append(value.removeprefix(b" "))
        elif not line and lines:
            found.append(b"\n".join(lines))
            lines = []
    return found


def split(raw: bytes, cuts: list[int]) -> list[bytes]:
    return [raw[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


@given(st.one_of(st.sampled_from(STREAMS), _TEXTS), st.data())
def test_any_split_gives_the_same_events_as_the_plain_reader(
    raw: bytes, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=8).map(sorted))
    assert read(split(raw, cuts)) == read_plainly(raw)


@pytest.mark.parametrize("raw", STREAMS)
def test_a_byte_at_a_time_gives_the_same_events(raw: bytes) -> None:
    assert read([raw[number : number + 1] for number in range(len(raw))]) == read_plainly(raw)


@pytest.mark.parametrize(
    "portions",
    [
        [b"data: " + b"x" * 1001 + b"\n\n"],
        [b"data: " + b"x" * 600, b"x" * 600],
        [b"data: " + b"x" * 600 + b"\n", b"data: " + b"x" * 600 + b"\n"],
        [b"data: a\n\ndata: " + b"x" * 1001 + b"\n\n"],
    ],
)
def test_an_event_past_the_limit_is_refused(portions: list[bytes]) -> None:
    with pytest.raises(EventTooLargeError, match="more than 1000 bytes"):
        read(portions)


def test_many_small_events_in_one_portion_are_within_the_limit() -> None:
    assert len(read([b"data: abc\n\n" * 1000])) == 1000
