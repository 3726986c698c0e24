"""From the bytes of a connection to checked events."""

from __future__ import annotations

import asyncio

import orjson
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.http.connection import HttpFailure
from crossroads.gateway.call import Event
from crossroads.gateway.contracts import Order
from crossroads.gateway.upstreams.failures import Failures
from crossroads.gateway.upstreams.reading import StreamReading
from crossroads.prompts.experts.base import ExpertError
from tests.core.http.servers import stream_response
from tests.core.http.test_connection import connected
from tests.gateway.upstreams.chats import chat_chunk

CHUNKS = [chat_chunk(text) for text in ("", "Zw\u00f6lf", " Bl\u00fcten", "\U0001f33c", "\n\n")]
EVENTS = [*CHUNKS, chat_chunk(None, "stop"), b": ping\n\n", b"data: [DONE]\n\n"]
GOOD = [orjson.loads(event[6:]) for event in EVENTS[:-2]]
WHOLE = stream_response(*EVENTS)


async def read(raw: bytes, cuts: list[int]) -> tuple[list[Event], str | None]:
    """Feed these bytes in these portions, then hang up; return events and error."""
    connection, _ = connected()
    order = Order(dialect="chat", body={})
    reading = StreamReading(connection, order, Failures("m"), max_event_bytes=1 << 16)
    events: list[Event] = []

    async def consume() -> str | None:
        try:
            await connection.head()
            while (batch := await reading.next()) is not None:
                events.extend(batch)
        except ExpertError as error:
            return error.code
        except HttpFailure as failure:
            return failure.kind
        return None

    task = asyncio.ensure_future(consume())
    for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        await asyncio.sleep(0)
        connection.data_received(raw[start:stop])
    connection.connection_lost(None)
    return events, await task


def cuts_of(size: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, size), max_size=12).map(sorted)


@given(cuts_of(len(WHOLE)))
def test_any_split_of_the_bytes_gives_the_same_events(cuts: list[int]) -> None:
    assert asyncio.run(read(WHOLE, cuts)) == (GOOD, None)


@given(st.data())
def test_a_stream_cut_anywhere_never_looks_whole_before_its_last_event(data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(WHOLE) - 1))
    cuts = data.draw(cuts_of(length))
    events, code = asyncio.run(read(WHOLE[:length], cuts))
    assert events == GOOD[: len(events)]
    if b"data: [DONE]" not in WHOLE[:length]:
        assert code in {"cut", "lost", "upstream_cut"}


@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=4))
def test_bytes_that_change_on_the_way_break_nothing(at: int, noise: bytes) -> None:
    raw = WHOLE[:at] + noise + WHOLE[at + len(noise) :]
    events, code = asyncio.run(read(raw, []))
    assert len(events) <= len(GOOD) + 1
    assert code is None or code.isascii()
