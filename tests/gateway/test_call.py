from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.call import Call, Client, decision_id, random_id

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


@pytest.mark.parametrize(
    ("body", "bound"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7}, 7),
        ({"max_completion_tokens": 1, "max_tokens": 100_000}, 100_000),
        ({"max_completion_tokens": 100_000, "max_tokens": 1}, 100_000),
        ({"max_completion_tokens": None, "max_tokens": 5}, 5),
        ({"max_completion_tokens": -1, "max_tokens": 5}, None),  # as much as there is, to some
        ({"max_tokens": 8.0}, 8),
        ({"max_tokens": "8"}, 8),
        ({"max_tokens": 1e400}, None),
        ({"max_tokens": True}, None),
    ],
)
def test_the_bound_on_output_is_the_largest_that_an_upstream_may_read(
    body: dict[str, Any], bound: int | None
) -> None:
    assert call(**body).max_output_tokens == bound


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


@pytest.mark.parametrize(
    ("n", "count"),
    [(3, 3), (1, 1), (0, 1), (True, 1), ("7", 7), (4.0, 4), (float("nan"), 1), ([4], 1), (None, 1)],
)
def test_answers_asked_for_at_once_are_counted_as_a_lenient_upstream_would(
    n: Any, count: int
) -> None:
    assert call(n=n).num_choices == count


def test_ids_of_decisions_are_in_the_order_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([1_700_000_000_000_000_000, 1_700_000_000_001_000_000])
    monkeypatch.setattr("crossroads.gateway.call.time.time_ns", lambda: next(moments))
    first, second = decision_id(), decision_id()
    assert first < second
    assert re.fullmatch("dec_018bcfe56800[0-9a-f]{20}", first)


def test_no_id_is_given_out_twice_whatever_the_thread() -> None:
    with ThreadPoolExecutor(4) as threads:
        many = threads.map(lambda _: [random_id() for _ in range(2_000)], range(4))
        found = [one for ids in many for one in ids]
    assert len(set(found)) == len(found) == 8_000
    assert {len(one) for one in found} == {32}


_FORKS = """
import os
from crossroads.gateway.call import random_id

random_id()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.write(writer, "".join(random_id() for _ in range(8)).encode())
    os._exit(0)
os.waitpid(child, 0)
print("".join(random_id() for _ in range(8)))
print(os.read(reader, 8 * 32).decode())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_gives_out_other_ids() -> None:
    # In a process of its own: forking one that has threads, as this one may, is deprecated.
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", _FORKS],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    ours, theirs = ran.stdout.splitlines()
    assert len(theirs) == len(ours) == 8 * 32
    assert theirs != ours


@pytest.mark.parametrize(
    ("messages", "text", "inputs"),
    [
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "b", {"text"}),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "a", {"text"}),
        ([{"role": "user", "content": "a"}, {"role": "tool", "content": None}], "a", {"text"}),
        (
            [
                {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
                {"role": "user", "content": "b"},
            ],
            "b",
            {"text", "image"},
        ),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "a", {"text"}),
    ],
)
def test_text_and_inputs_of_any_order_of_messages(
    messages: list[Any], text: str, inputs: set[str]
) -> None:
    found = call(messages=messages)
    assert (found.text, set(found.inputs)) == (text, inputs)
