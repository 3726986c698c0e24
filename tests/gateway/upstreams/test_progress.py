"""When a stream is whole."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.call import Dialect
from crossroads.gateway.upstreams.progress import (
    MalformedEventError,
    ReportedError,
    progress_of,
)

DIALECTS: tuple[Dialect, ...] = ("chat", "completions", "responses", "messages")
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
_EVENT = st.fixed_dictionaries(
    {},
    optional={
        "type": _JSON,
        "error": _JSON,
        "response": _JSON,
        "choices": _JSON
        | st.lists(st.fixed_dictionaries({}, optional={"index": _JSON, "finish_reason": _JSON})),
    },
)


def choice(index: int, finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": {}, "finish_reason": finish}


@given(st.sampled_from(DIALECTS), st.lists(_EVENT, max_size=5))
def test_no_event_whatever_breaks_the_reader(
    dialect: Dialect, events: list[dict[str, Any]]
) -> None:
    progress = progress_of(dialect, {})
    for event in events:
        with suppress(MalformedEventError, ReportedError):
            progress.note(event)
    assert progress.num_events <= len(events)


@given(st.lists(st.integers(0, 3), min_size=1, unique=True), st.randoms())
def test_a_chat_stream_is_whole_when_every_choice_has_finished(
    indices: list[int], random: Any
) -> None:
    events = [choice(index) for index in indices]
    progress = progress_of("chat", {})
    for event in events:
        progress.note({"choices": [event]})
        assert not progress.is_whole
    random.shuffle(indices)
    for number, index in enumerate(indices, 1):
        progress.note({"choices": [choice(index, "stop")]})
        assert progress.is_whole == (number == len(indices))
    assert not progress.is_over  # token counts may follow
    progress.done()
    assert progress.is_over


def test_token_counts_alone_do_not_make_a_stream_whole() -> None:
    progress = progress_of("chat", {})
    progress.note({"choices": [], "usage": {"prompt_tokens": 1}})
    assert not progress.is_whole


@pytest.mark.parametrize(
    "given_choices", [[1], [None], [[]], [{"index": []}], [{"delta": "x"}], {}, "x", None]
)
def test_a_choice_that_is_none_is_malformed(given_choices: Any) -> None:
    with pytest.raises(MalformedEventError):
        progress_of("chat", {}).note({"choices": given_choices})


@pytest.mark.parametrize("dialect", ["chat", "completions"])
def test_a_stream_of_several_answers_is_whole_when_all_that_were_asked_for_finished(
    dialect: Dialect,
) -> None:
    progress = progress_of(dialect, {"n": 2})
    progress.note({"choices": [choice(0)]})
    progress.note({"choices": [choice(0, "stop")]})
    assert not progress.is_whole  # the second never began
    progress.note({"choices": [choice(1, "stop")]})
    assert progress.is_whole
    fewer = progress_of(dialect, {"n": 2})
    fewer.note({"choices": [choice(0, "stop")]})
    fewer.done()
    assert fewer.is_whole  # the server says so itself


@pytest.mark.parametrize("n", [None, 1, 0, -3, True, "2", 2.0])
def test_what_is_no_number_of_answers_asks_for_one(n: Any) -> None:
    progress = progress_of("chat", {"n": n})
    progress.note({"choices": [choice(0, "stop")]})
    assert progress.is_whole
