"""The surface ``/v1/responses``: OpenAI's newer API, over upstreams of any dialect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from crossroads.gateway.call import Body, Call, Client, Dialect, Event, lazy
from crossroads.gateway.contracts import Writer
from crossroads.gateway.dialects.events import all_named, named
from crossroads.gateway.dialects.reading import (
    forwarded,
    is_stream,
    load,
    model_of,
    own_headers,
    wrong,
)
from crossroads.gateway.dialects.responses_answer import failed, new_response, to_responses_answer
from crossroads.gateway.dialects.responses_request import from_responses_request, input_items
from crossroads.gateway.dialects.responses_store import ResponsesStore, Stored
from crossroads.gateway.dialects.responses_stream import ChatToResponses
from crossroads.gateway.dialects.understanding import reads_answers
from crossroads.gateway.errors import ApiError

_PREVIOUS = "previous_response_id"
_LAST = ("response.completed", "response.incomplete")
_READ_ONCE = tuple(name for name, value in vars(Call).items() if isinstance(value, lazy))
"""What a call computes once, and anew when it has become longer."""


@dataclass(kw_only=True, eq=False)
class ResponsesCall(Call):
    """A call of this API.

    Attributes
    ----------
    request : as the client sent it; ``native`` has the earlier turns in place of their id
    items : of the conversation, once ``prepare`` was awaited with those of earlier turns
    """

    request: Body = field(default_factory=dict)
    items: list[Body] = field(default_factory=list)

    @property
    def is_stored(self) -> bool:
        return self.request.get("store") is not False


class ResponsesSurface:
    """Responses, as JSON and as a stream of named events.

    Parameters
    ----------
    store : keeps answers for later turns; None to keep none
    """

    dialect: Dialect = "responses"

    def __init__(self, store: ResponsesStore | None = None) -> None:
        self._store = store

    def parse(self, body: bytes, *, client: Client, headers: Mapping[bytes, bytes]) -> Call:
        """Return the call; ``prepare`` must be awaited before it is used.

        Raises ApiError 400 naming the field that is wrong.
        """
        request = load(body)
        model = model_of(request)
        items = input_items(request)
        previous = request.get(_PREVIOUS)
        if previous is not None and (not isinstance(previous, str) or not previous):
            raise wrong(_PREVIOUS, "the id of a response", previous)
        if not isinstance(request.get("store"), bool | None):
            raise wrong("store", "true or false", request["store"])
        return ResponsesCall(
            dialect="responses",
            model=model,
            body=from_responses_request(request, items),
            native=forwarded(request),
            is_stream=is_stream(request),
            size=len(body),
            client=client,
            headers=own_headers(request, headers),
            request=request,
            items=items,
        )

    async def prepare(self, call: Call) -> None:
        """Put the earlier turns in place of ``previous_response_id``.

        Whichever upstream answers then has the whole conversation. Raises ApiError 400 where the
        response is unknown: of another client, too old, or never stored.
        """
        if not isinstance(call, ResponsesCall) or _PREVIOUS not in call.request:
            return
        previous = call.request[_PREVIOUS]
        if previous is None:
            return
        stored = None
        if self._store is not None:
            stored = await self._store.get(call.client.key_id, previous)
        if stored is None:
            raise ApiError(
                f"Previous response with id {previous!r} not found.",
                code="previous_response_not_found",
                param=_PREVIOUS,
            )
        earlier = [*stored.items, *_as_input(stored.response.get("output") or [])]
        call.items = [*earlier, *call.items]
        call.body = from_responses_request(call.request, call.items)
        native = forwarded(call.request)
        del native[_PREVIOUS]
        native["input"] = call.items
        call.native = native
        call.size += len(orjson.dumps(earlier))
        for name in _READ_ONCE:
            call.__dict__.pop(name, None)

    @reads_answers
    def render(self, call: Call, model: str, dialect: Dialect, answer: Body) -> bytes:
        """Return the JSON of a response that names the model that answered, and keep it."""
        request = _request(call)
        if dialect == "responses":
            response = {**answer, "model": model, _PREVIOUS: request.get(_PREVIOUS)}
        else:
            response = to_responses_answer(answer, request, model)
        self.keep(call, response)
        return orjson.dumps(response)

    def writer(self, call: Call, model: str, dialect: Dialect) -> Writer:
        """Return what writes the events of one answer, and keeps it when it is whole."""
        if dialect == "responses":
            return _NativeWriter(self, call, model)
        return _ChatWriter(self, call, model)

    def keep(self, call: Call, response: Body) -> None:
        """Keep a whole answer, if the client did not say otherwise."""
        if self._store is not None and isinstance(call, ResponsesCall) and call.is_stored:
            self._store.put(call.client.key_id, Stored(response, call.items))

    def error(self, error: ApiError, request_id: str) -> bytes:
        """Return OpenAI's error object."""
        return error.body

    def status(self, error: ApiError) -> int:
        """Return the error's own status."""
        return error.status


def _request(call: Call) -> Body:
    native = call.native or {}
    if not isinstance(call, ResponsesCall):
        return native
    assert not native.get(_PREVIOUS), "prepare was not awaited: the earlier turns are missing"
    return call.request


def _as_input(output: list[Body]) -> list[Body]:
    """Return the items of an answer as input of the next turn.

    Their ids mean nothing to another upstream, and thoughts can go back only encrypted.
    """
    items = []
    for item in output:
        if item.get("type") == "reasoning" and not item.get("encrypted_content"):
            continue
        items.append({k: v for k, v in item.items() if k not in ("id", "status")})
    return items


def _error_fields(error: ApiError) -> Body:
    return {"code": error.code or error.type, "message": str(error), "param": error.param}


class _NativeWriter:
    """Passes events on; only the model's name and the id of the turn before are ours."""

    def __init__(self, surface: ResponsesSurface, call: Call, model: str) -> None:
        self._surface = surface
        self._call = call
        self._ours = {"model": model, _PREVIOUS: _request(call).get(_PREVIOUS)}
        self._response: Body = {}
        self._number = -1

    @reads_answers
    def feed(self, events: Sequence[Event]) -> bytes:
        return all_named([self._noted(event) for event in events])

    def _noted(self, event: Event) -> Event:
        number = event.get("sequence_number")
        self._number = number if isinstance(number, int) else self._number + 1
        response = event.get("response")
        if not isinstance(response, dict):
            return event
        self._response = {**response, **self._ours}
        if event.get("type") in _LAST:
            self._surface.keep(self._call, self._response)
        return {**event, "response": self._response}

    def end(self) -> bytes:
        return b""  # ``response.completed`` was the last event

    def fail(self, error: ApiError) -> bytes:
        response = self._response or new_response(_request(self._call), str(self._ours["model"]))
        word = "rate_limit_exceeded" if error.status == 429 else "server_error"
        response = failed(response, response.get("output") or [], code=word, message=str(error))
        return self._say("error", _error_fields(error)) + self._say(
            "response.failed", {"response": response}
        )

    def _say(self, type: str, fields: Body) -> bytes:
        self._number += 1
        return named({"type": type, "sequence_number": self._number, **fields})


class _ChatWriter:
    """Translates chunks of ``chat``."""

    def __init__(self, surface: ResponsesSurface, call: Call, model: str) -> None:
        self._surface = surface
        self._call = call
        self._translator = ChatToResponses(_request(call), model)

    @reads_answers
    def feed(self, events: Sequence[Event]) -> bytes:
        return all_named(self._translator.feed(events))

    def end(self) -> bytes:
        written = all_named(self._translator.end())
        self._surface.keep(self._call, self._translator.response)
        return written

    def fail(self, error: ApiError) -> bytes:
        return all_named(
            self._translator.fail(**_error_fields(error), is_limit=error.status == 429)
        )
