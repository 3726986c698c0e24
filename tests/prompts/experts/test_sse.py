from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts.experts.sse import Event, EventReader, EventTooLargeError

# Control characters would be line endings or nothing that JSON contains.
LINE = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)


def read(portions: list[bytes]) -> list[Event]:
    reader = EventReader()
    found = [event for portion in portions for event in reader.feed(portion)]
    return found + reader.flush()


@given(
    datas=st.lists(st.lists(LINE, min_size=1, max_size=3), max_size=5),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_events_are_the_same_however_the_bytes_arrive(
    datas: list[list[str]], ending: str, cuts: list[int]
) -> None:
    text = "".join("".join(f"data: {line}{ending}" for line in lines) + ending for lines in datas)
    stream = text.encode()
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    portions = [stream[a:b] for a, b in pairwise(places)]
    assert read(portions) == [Event("\n".join(lines)) for lines in datas]


def test_comments_ids_and_unknown_fields_are_passed_over() -> None:
    stream = b": ping\n\nid: 7\nretry: 10\nfoo: bar\nevent: error\ndata:x\ndata\n\n"
    assert read([stream]) == [Event("x\n", "error")]


def test_an_events_name_does_not_outlive_it() -> None:
    assert read([b"event: a\ndata: 1\n\ndata: 2\n\n"]) == [Event("1", "a"), Event("2")]


def test_a_byte_order_mark_is_no_part_of_the_first_field() -> None:
    assert read([b"\xef\xbb\xbfdata: x\n\n"]) == [Event("x")]


def test_one_space_after_the_colon_is_dropped() -> None:
    assert read([b"data:  x\n\n"]) == [Event(" x")]


def test_an_event_without_its_empty_line_comes_at_the_end() -> None:
    reader = EventReader()
    assert reader.feed(b"data: [DO") == []
    assert reader.feed(b"NE]") == []
    assert reader.flush() == [Event("[DONE]")]
    assert reader.flush() == []


def test_an_event_that_never_ends_is_refused() -> None:
    reader = EventReader(max_event_bytes=100)
    with pytest.raises(EventTooLargeError, match="100 bytes"):
        reader.feed(b"data: " + b"x" * 200)
    reader = EventReader(max_event_bytes=100)
    with pytest.raises(EventTooLargeError):
        for _ in range(50):
            reader.feed(b"data: xxxxxxxxx\n")


def test_many_small_events_are_not_one_large_one() -> None:
    reader = EventReader(max_event_bytes=100)
    assert sum(len(reader.feed(b"data: xxxxxxxxx\n\n")) for _ in range(50)) == 50
