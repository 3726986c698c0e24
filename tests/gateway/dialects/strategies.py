"""What hypothesis makes up: answers, streams and arbitrary JSON."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
from hypothesis import strategies as st

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
filled = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
names = st.text("abcdefghij_", min_size=1, max_size=8)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
arguments = st.dictionaries(names, json_values, max_size=3)
finishes = st.sampled_from(["stop", "length", "content_filter"])


@st.composite
def tool_calls(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Return parallel calls, with ids of their own."""
    given = draw(st.lists(st.tuples(names, arguments), max_size=3))
    return [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": orjson.dumps(values).decode()},
        }
        for number, (name, values) in enumerate(given)
    ]


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    """Return a whole answer of ``chat``."""
    calls = draw(tool_calls())
    message: dict[str, Any] = {"role": "assistant", "content": draw(filled | st.none())}
    if calls:
        message["tool_calls"] = calls
    elif message["content"] is None:
        message["content"] = ""
    thoughts = draw(filled | st.none())
    if thoughts is not None:
        message["reasoning_content"] = thoughts
    finish = "tool_calls" if calls else draw(finishes)
    prompt, cached = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))
    completion = draw(st.integers(0, 10**6))
    usage: dict[str, Any] = {
        "prompt_tokens": prompt + cached,
        "completion_tokens": completion,
        "total_tokens": prompt + cached + completion,
    }
    if cached:
        usage["prompt_tokens_details"] = {"cached_tokens": cached, "cache_write_tokens": 0}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": usage,
    }


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the chunks of an answer, cut at random places, and the answer."""
    answer = draw(answers())
    choice = answer["choices"][0]
    message = choice["message"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    for field in ("reasoning_content", "content"):
        deltas += [{field: piece} for piece in draw(_pieces(message.get(field) or ""))]
    for index, call in enumerate(message.get("tool_calls", ())):
        function = call["function"]
        deltas.append(
            {"tool_calls": [{**call, "index": index, "function": {**function, "arguments": ""}}]}
        )
        for piece in draw(_pieces(function["arguments"])):
            deltas.append({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    chunks = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    last = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
    chunks.append({**head, "choices": [last]})
    chunks.append({**head, "choices": [], "usage": answer["usage"]})
    return chunks, answer


@st.composite
def _pieces(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=4)))
    places = [0, *(cut for cut in cuts if cut < len(text)), len(text)]
    return [text[a:b] for a, b in pairwise(places) if a < b]


@st.composite
def batches(draw: st.DrawFn, items: list[Any]) -> list[list[Any]]:
    """Return the items in batches, some of them empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(items)), max_size=5)))
    places = [0, *cuts, len(items)]
    return [items[a:b] for a, b in pairwise(places)]
