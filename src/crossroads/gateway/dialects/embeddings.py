"""The surface ``/v1/embeddings``: passed on as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from crossroads.gateway.call import Body, Call, Client, Dialect
from crossroads.gateway.contracts import Writer
from crossroads.gateway.dialects.reading import load, model_of, own_headers, wrong
from crossroads.gateway.dialects.understanding import reads_answers
from crossroads.gateway.errors import ApiError

_ENCODINGS = (None, "float", "base64")


class EmbeddingsSurface:
    """Embeddings of texts or of token ids, as numbers or as base64 of little-endian float32."""

    dialect: Dialect = "embeddings"

    def parse(self, body: bytes, *, client: Client, headers: Mapping[bytes, bytes]) -> Call:
        """Return the call. Raises ApiError 400 naming the field that is wrong."""
        request = load(body)
        model = model_of(request)
        given = request.get("input")
        if not _is_input(given):
            expected = "a text, a list of texts, a list of token ids, or a list of such lists"
            raise wrong("input", expected, given)
        if not isinstance(request.get("messages") or [], list):
            raise wrong("messages", "a list", request["messages"])
        encoding = request.get("encoding_format")
        if encoding not in _ENCODINGS:
            raise wrong("encoding_format", "'float' or 'base64'", encoding)
        return Call(
            dialect="embeddings",
            model=model,
            body=request,
            size=len(body),
            client=client,
            headers=own_headers(request, headers),
        )

    @reads_answers
    def render(self, call: Call, model: str, dialect: Dialect, answer: Body) -> bytes:
        """Return the JSON of the list of vectors, which names the model that answered."""
        return orjson.dumps({"object": "list", **answer, "model": model})

    def writer(self, call: Call, model: str, dialect: Dialect) -> Writer:
        """Raise ApiError 400: embeddings have no events."""
        raise ApiError("Embeddings cannot be streamed.", param="stream")

    def error(self, error: ApiError, request_id: str) -> bytes:
        """Return OpenAI's error object."""
        return error.body

    def status(self, error: ApiError) -> int:
        """Return the error's own status."""
        return error.status


def _is_input(given: Any) -> bool:
    if isinstance(given, str):
        return bool(given)
    if not isinstance(given, list) or not given:
        return False
    if all(isinstance(text, str) for text in given) or _are_ids(given):
        return True
    return all(isinstance(ids, list) and ids and _are_ids(ids) for ids in given)


def _are_ids(given: list[Any]) -> bool:
    return all(type(number) is int for number in given)
