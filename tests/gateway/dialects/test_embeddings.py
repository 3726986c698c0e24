from __future__ import annotations

from typing import Any

import orjson
import pytest

from crossroads.gateway.call import ANYBODY, Call
from crossroads.gateway.dialects import EmbeddingsSurface
from crossroads.gateway.errors import ApiError

SURFACE = EmbeddingsSurface()


def call(**fields: Any) -> Call:
    return SURFACE.parse(orjson.dumps({"model": "m", **fields}), client=ANYBODY, headers={})


@pytest.mark.parametrize("given", ["Hi", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_every_kind_of_input_passes(given: Any) -> None:
    asked = call(input=given, encoding_format="base64", dimensions=8)
    assert asked.body["input"] == given and asked.body["dimensions"] == 8
    assert asked.dialect == "embeddings" and not asked.is_stream


@pytest.mark.parametrize("given", [None, "", [], [True], [1, "a"], [[]], [["a"]], 5, {}])
def test_other_input_is_refused(given: Any) -> None:
    with pytest.raises(ApiError) as raised:
        call(input=given)
    assert (raised.value.status, raised.value.param) == (400, "input")


@pytest.mark.parametrize("encoding", ["float16", 1, []])
def test_other_encodings_are_refused(encoding: Any) -> None:
    with pytest.raises(ApiError, match="base64"):
        call(input="x", encoding_format=encoding)


@pytest.mark.parametrize("vector", [[0.1, 0.2], "AAAA"])
def test_vectors_pass_as_they_are(vector: Any) -> None:
    answer = {"data": [{"embedding": vector, "index": 0}], "model": "up", "usage": {}}
    rendered = orjson.loads(SURFACE.render(call(input="x"), "m", "embeddings", answer))
    assert rendered == {**answer, "object": "list", "model": "m"}


def test_vectors_are_not_streamed() -> None:
    with pytest.raises(ApiError, match="streamed"):
        SURFACE.writer(call(input="x"), "m", "embeddings")
