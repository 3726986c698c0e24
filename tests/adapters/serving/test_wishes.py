from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.adapters.serving.wishes import MOST_TOKENS, RefusedError, read_wish

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "m", "prompt": "once"}


def test_defaults_are_greedy_and_bounded() -> None:
    wish = read_wish(CHAT, "chat")
    assert wish.sampling.temperature == 0 and wish.sampling.top_p == 1
    assert wish.most == MOST_TOKENS and not wish.stream and wish.stops == ()
    assert read_wish(TEXT, "text").messages == ({"role": "user", "content": "once"},)


def test_what_is_asked_is_read() -> None:
    wish = read_wish(
        {
            **CHAT,
            "messages": [
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
                {"role": "assistant", "content": "c"},
            ],
            "max_tokens": 9, "max_completion_tokens": 4, "temperature": 1, "top_p": 0.5,
            "seed": -3, "stop": "x", "stream": True, "stream_options": {"include_usage": True},
            "user": "somebody", "n": 1, "tools": [],
        },
        "chat",
    )  # fmt: skip
    assert [message["role"] for message in wish.messages] == ["system", "user", "assistant"]
    assert wish.asked == "a\nb"
    assert (wish.most, wish.sampling.seed, wish.stops) == (4, -3, ("x",))
    assert wish.stream and wish.include_usage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "model: expected the name"),
        ({"messages": []}, "messages: expected a list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\]: expected a role"),
        ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\].content: expected tex"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "nothing else"),
        ({"n": 2}, "n: this server does not have it"),
        ({"logprobs": True}, "logprobs: this server does not have it"),
        ({"tools": [{}]}, "tools: this server does not have it"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"max_tokens": 0}, "max_tokens: expected a whole number of at least 1"),
        ({"max_tokens": True}, "max_tokens: expected a whole number"),
        ({"temperature": "hot"}, "temperature: expected a number, got 'hot'"),
        ({"temperature": 9}, r"temperature: expected a number in \[0, 2\]"),
        ({"top_p": 0}, r"top_p: expected a number in \(0, 1\]"),
        ({"seed": 1.5}, "seed: expected a whole number"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop: expected a text or up to 4"),
        ({"stop": [""]}, "stop: expected"),
    ],
)
def test_what_is_not_here_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RefusedError, match=message) as found:
        read_wish({**CHAT, **change}, "chat")
    assert found.value.status == 400
    assert str(found.value.param).startswith(next(iter(change)))


@pytest.mark.parametrize("prompt", [None, "", ["a", "b"], [1, 2]])
def test_a_completion_has_one_text(prompt: Any) -> None:
    with pytest.raises(RefusedError, match="prompt: expected one text"):
        read_wish({**TEXT, "prompt": prompt}, "text")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(["model", "messages", "stop", "seed", "n", "stream", "stream_options",
                         "temperature", "top_p", "max_tokens", "tools", "logit_bias"]), _JSON,
    )
    | _JSON
)  # fmt: skip
@settings(max_examples=200)
def test_any_json_is_read_or_refused(body: Any) -> None:
    try:
        read_wish({**CHAT, **body} if isinstance(body, dict) else body, "chat")
    except RefusedError as error:
        assert 400 <= error.status < 500
