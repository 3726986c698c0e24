from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.call import Call, Client

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def call(**body: Any) -> Call:
    return Call(dialect="chat", model="m", body=body, size=400)


@given(
    st.dictionaries(st.sampled_from(["messages", "tools", "metadata", "user", "max_tokens"]), JSON)
)
def test_a_strange_body_is_described_and_never_raises(body: dict[str, Any]) -> None:
    found = call(**body)
    assert "text" in found.inputs
    assert found.input_tokens > 0
    assert isinstance(found.text, str)
    assert isinstance(found.session, str)
    assert found.max_output_tokens is None or found.max_output_tokens > 0
    assert all(isinstance(value, str) for value in found.metadata.values())
    assert isinstance(found.has_tools, bool)


def test_fields_of_the_gateways_own_are_not_forwarded() -> None:
    body = {"messages": [], "crossroads": {"policy": "p"}, "routing_preferences": [], "seed": 1}
    assert call(**body).in_dialect("chat") == {"messages": [], "seed": 1}
    plain = call(messages=[])
    assert plain.in_dialect("chat") is plain.body  # nothing is copied without need


def test_media_are_found_and_do_not_count_by_their_bytes() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}}
    found = call(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}, image]}])
    found.size = 20_000
    assert found.inputs == {"text", "image"}
    assert found.input_tokens < 2_000


@pytest.mark.parametrize(
    ("headers", "tags"),
    [({}, {"own"}), ({b"x-crossroads-tags": b"a, b,,"}, {"own", "a", "b"})],
)
def test_tags_are_those_of_the_request_and_of_the_key(
    headers: dict[bytes, bytes], tags: set[str]
) -> None:
    client = Client(key_id="k", tags=frozenset({"own"}))
    found = Call(dialect="chat", model="m", body={}, client=client, headers=headers)
    assert found.tags == tags


def test_every_call_has_an_id_of_its_own() -> None:
    assert len({call().id for _ in range(100)}) == 100


def test_every_medium_counts() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://host/a.png"}}
    one, five = (
        call(messages=[{"role": "user", "content": [image] * count}]).input_tokens
        for count in (1, 5)
    )
    assert five - one == 4 * 1_000


@pytest.mark.parametrize(("n", "count"), [(3, 3), (1, 1), (0, 1), (True, 1), ("7", 1), (None, 1)])
def test_answers_asked_for_at_once_are_counted(n: Any, count: int) -> None:
    assert call(n=n).num_choices == count
