"""The surface ``/v1/completions``: the older text completions, also over upstreams of ``chat``.

One prompt, given as a string or as a list of one string. What cannot be asked of a chat model
(several prompts, token ids, ``suffix``, ``best_of`` > 1) is refused, since which upstream answers
is not known yet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from crossroads.gateway.call import Body, Call, Client, Dialect, Event
from crossroads.gateway.dialects.events import DONE, unnamed
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
from crossroads.prompts.experts.base import wants_usage

_ONLY_COMPLETIONS = ("prompt", "echo", "suffix", "best_of", "logprobs")


class CompletionsSurface:
    """Text completions, as JSON and as a stream of chunks that ends with ``[DONE]``."""

    dialect: Dialect = "completions"

    def parse(self, body: bytes, *, client: Client, headers: Mapping[bytes, bytes]) -> Call:
        """Return the call. Raises ApiError 400 naming the field that is wrong."""
        request = load(body)
        return Call(
            dialect="completions",
            model=model_of(request),
            body=_chat_request(request, _prompt(request)),
            native=forwarded(request),
            is_stream=is_stream(request),
            size=len(body),
            client=client,
            headers=own_headers(request, headers),
        )

    @reads_answers
    def render(self, call: Call, model: str, dialect: Dialect, answer: Body) -> bytes:
        """Return the JSON of a ``text_completion`` that names the model that answered."""
        choices = answer.get("choices") or []
        if dialect == "chat":
            echo = _echo(call)
            choices = [_text_choice(choice, n, echo) for n, choice in enumerate(choices)]
        return orjson.dumps({**answer, **_identity(answer, model), "choices": choices})

    def writer(self, call: Call, model: str, dialect: Dialect) -> CompletionsWriter:
        """Return what writes the chunks of one answer."""
        echo = _echo(call) if dialect == "chat" else ""
        return CompletionsWriter(
            model,
            is_chat=dialect == "chat",
            echo=echo,
            wants_usage=wants_usage(call.native or call.body),
        )

    def error(self, error: ApiError, request_id: str) -> bytes:
        """Return OpenAI's error object."""
        return error.body

    def status(self, error: ApiError) -> int:
        """Return the error's own status."""
        return error.status


def _prompt(request: Body) -> str:
    prompt = request.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise wrong("prompt", "a string, or a list of one string", request.get("prompt"))
    if request.get("suffix"):
        raise ApiError("'suffix' is not supported; leave it out.", param="suffix")
    if request.get("best_of") not in (None, 1):
        raise ApiError("'best_of' must be 1; ask for several answers by 'n'.", param="best_of")
    return prompt


def _chat_request(request: Body, prompt: str) -> Body:
    body = {name: value for name, value in request.items() if name not in _ONLY_COMPLETIONS}
    body["messages"] = [{"role": "user", "content": prompt}]
    logprobs = request.get("logprobs")
    if isinstance(logprobs, int) and logprobs is not False:
        body["logprobs"] = True
        if logprobs > 0:
            body["top_logprobs"] = int(logprobs)
    return body


def _echo(call: Call) -> str:
    """Return the text the client wants repeated before the answer."""
    is_wanted = call.native is not None and call.native.get("echo") is True
    return call.text if is_wanted else ""


def _identity(answer: Mapping[str, Any], model: str) -> Body:
    return {
        "id": answer.get("id") or f"cmpl-{os.urandom(16).hex()}",
        "object": "text_completion",
        "created": answer.get("created") or int(time.time()),
        "model": model,
    }


def _text_choice(choice: Body, number: int, echo: str) -> Body:
    message = choice.get("message") or {}
    return {
        "index": choice.get("index", number),
        "text": echo + (message.get("content") or ""),
        "logprobs": _logprobs(choice.get("logprobs")),
        "finish_reason": choice.get("finish_reason"),
    }


def _logprobs(given: Any) -> Body | None:
    """Return log probabilities as this API writes them: lists side by side."""
    entries = given.get("content") if isinstance(given, dict) else None
    if not entries:
        return None
    offsets, offset = [], 0
    for entry in entries:
        offsets.append(offset)
        offset += len(entry.get("token") or "")
    return {
        "tokens": [entry.get("token") for entry in entries],
        "token_logprobs": [entry.get("logprob") for entry in entries],
        "top_logprobs": [
            {top.get("token"): top.get("logprob") for top in entry.get("top_logprobs") or ()}
            for entry in entries
        ],
        "text_offset": offsets,
    }


class CompletionsWriter:
    """Writes chunks with ``text`` in place of ``delta``; token counts last, where asked for.

    Parameters
    ----------
    model : that answers
    is_chat : whether the events are chunks of ``chat``, not of this API
    echo : text to begin every choice with
    wants_usage : whether the client asked for token counts
    """

    def __init__(self, model: str, *, is_chat: bool, echo: str, wants_usage: bool) -> None:
        self._model = model
        self._is_chat = is_chat
        self._echo = echo
        self._wants_usage = wants_usage
        self._identity: Body = {}
        self._echoed: set[int] = set()
        self._usage: Any = None

    @reads_answers
    def feed(self, events: Sequence[Event]) -> bytes:
        """Return the bytes of a batch of chunks."""
        written: list[bytes] = []
        for chunk in events:
            self._usage = chunk.get("usage") or self._usage
            self._identity = self._identity or _identity(chunk, self._model)
            choices = chunk.get("choices") or []
            if self._is_chat:
                choices = [text for choice in choices if (text := self._text(choice))]
            if choices:
                written.append(unnamed(self._chunk(choices, None)))
        return b"".join(written)

    def end(self) -> bytes:
        """Return the token counts, where they were asked for, and ``[DONE]``."""
        if not self._wants_usage or self._usage is None:
            return DONE
        return unnamed(self._chunk([], self._usage)) + DONE

    def fail(self, error: ApiError) -> bytes:
        """Return an error event. No ``[DONE]`` follows: the answer is not whole."""
        return b"data: " + error.body + b"\n\n"

    def _chunk(self, choices: list[Body], usage: Any) -> Body:
        chunk = {**self._identity, "choices": choices}
        if self._wants_usage:
            chunk["usage"] = usage
        return chunk

    def _text(self, choice: Body) -> Body | None:
        delta = choice.get("delta") or {}
        text, index = delta.get("content") or "", choice.get("index") or 0
        finish = choice.get("finish_reason")
        if not text and finish is None:
            return None  # the role alone says nothing here
        if self._echo and index not in self._echoed:
            self._echoed.add(index)
            text = self._echo + text
        logprobs = _logprobs(choice.get("logprobs"))
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
