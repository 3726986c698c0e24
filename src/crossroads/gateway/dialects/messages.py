"""The surface ``/v1/messages``: Anthropic's API, over upstreams of any dialect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import orjson

from crossroads.gateway.call import Body, Call, Client, Dialect, Event
from crossroads.gateway.contracts import Writer
from crossroads.gateway.dialects.chat import check_messages
from crossroads.gateway.dialects.events import all_named, named
from crossroads.gateway.dialects.messages_answer import to_messages_answer
from crossroads.gateway.dialects.messages_request import from_messages_request
from crossroads.gateway.dialects.messages_stream import ChatToMessages
from crossroads.gateway.dialects.reading import (
    forwarded,
    is_stream,
    load,
    model_of,
    own_headers,
    wrong,
)
from crossroads.gateway.dialects.understanding import reads_answers
from crossroads.gateway.errors import ApiError

_OVERLOADED = 529  # the API's own status for what is 503 elsewhere
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    _OVERLOADED: "overloaded_error",
}
_CHARACTERS_PER_TOKEN = 4  # of English text, by the vendors' own rule of thumb


class MessagesSurface:
    """Messages, as JSON and as a stream of named events."""

    dialect: Dialect = "messages"

    def parse(self, body: bytes, *, client: Client, headers: Mapping[bytes, bytes]) -> Call:
        """Return the call. Raises ApiError 400 naming the field that is wrong."""
        request = load(body)
        model = model_of(request)
        check_messages(request)
        bound = request.get("max_tokens")
        if bound is not None and (not isinstance(bound, int) or isinstance(bound, bool)):
            raise wrong("max_tokens", "a whole number of tokens", bound)
        return Call(
            dialect="messages",
            model=model,
            body=from_messages_request(request),
            native=forwarded(request),
            is_stream=is_stream(request),
            size=len(body),
            client=client,
            headers=own_headers(request, headers),
        )

    @reads_answers
    def render(self, call: Call, model: str, dialect: Dialect, answer: Body) -> bytes:
        """Return the JSON of a message that names the model that answered."""
        if dialect == "messages":
            return orjson.dumps({**answer, "model": model})
        return orjson.dumps(to_messages_answer(answer, model))

    def writer(self, call: Call, model: str, dialect: Dialect) -> Writer:
        """Return what writes the events of one answer."""
        if dialect == "messages":
            return _NativeWriter(model)
        return _ChatWriter(model)

    def error(self, error: ApiError, request_id: str) -> bytes:
        """Return Anthropic's error object."""
        return orjson.dumps(_error(error, request_id))

    def status(self, error: ApiError) -> int:
        """Return the HTTP status that Anthropic's clients know: 529 for an overload."""
        return _OVERLOADED if error.status == 503 else error.status

    def count_tokens(
        self, body: bytes, *, is_known: Callable[[str], bool] = lambda _: True
    ) -> bytes:
        """Answer ``/v1/messages/count_tokens``: an estimate, labelled as one.

        A token is taken for four characters of the request's system text, messages and tools;
        ``is_estimate`` says so. Raises ApiError 400, or 404 for a model that ``is_known`` denies.
        """
        request = load(body)
        model = model_of(request)
        check_messages(request)
        if not is_known(model):
            raise ApiError(
                f"The model {model!r} does not exist; GET /v1/models lists those that do.",
                status=404,
                code="model_not_found",
                param="model",
            )
        counted = [request["messages"], request.get("system"), request.get("tools")]
        characters = sum(_characters(part) for part in counted)
        tokens = characters // _CHARACTERS_PER_TOKEN + 1
        return orjson.dumps({"input_tokens": tokens, "is_estimate": True})


def _characters(value: object) -> int:
    """Count the characters of all texts but media, without recursion."""
    count, waiting = 0, [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            count += len(part)
        elif isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            if part.get("type") in ("image", "document"):
                count += 1_000 * _CHARACTERS_PER_TOKEN  # the order of magnitude of an image
            else:
                waiting += [v for name, v in part.items() if name not in ("type", "role")]
                count += sum(len(name) for name in part if name not in ("type", "role", "text"))
    return count


def _error(error: ApiError, request_id: str = "") -> Body:
    kind = _TYPES.get(error.status)
    if kind is None:
        kind = "invalid_request_error" if error.status < 500 else "api_error"
    body: Body = {"type": "error", "error": {"type": kind, "message": str(error)}}
    if request_id:
        body["request_id"] = request_id
    return body


class _NativeWriter:
    """Passes events on; only the model's name is ours."""

    def __init__(self, model: str) -> None:
        self._model = model

    @reads_answers
    def feed(self, events: Sequence[Event]) -> bytes:
        return all_named([self._renamed(event) for event in events])

    def _renamed(self, event: Event) -> Event:
        message = event.get("message")
        if event.get("type") != "message_start" or not isinstance(message, dict):
            return event
        return {**event, "message": {**message, "model": self._model}}

    def end(self) -> bytes:
        return b""  # ``message_stop`` was the last event

    def fail(self, error: ApiError) -> bytes:
        return named(_error(error))


class _ChatWriter:
    """Translates chunks of ``chat``."""

    def __init__(self, model: str) -> None:
        self._translator = ChatToMessages(model)

    @reads_answers
    def feed(self, events: Sequence[Event]) -> bytes:
        return all_named(self._translator.feed(events))

    def end(self) -> bytes:
        return all_named(self._translator.end())

    def fail(self, error: ApiError) -> bytes:
        return named(_error(error))
