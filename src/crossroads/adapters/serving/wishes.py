"""Requests of OpenAI's chat and completions endpoints, as far as this server grants them.

What would change the answer and is not there is refused by its name; what would not is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from crossroads.adapters.generating import Sampling
from crossroads.core.errors import InputError

Kind = Literal["chat", "text"]
MOST_TOKENS = 256  # of an answer whose request sets no bound
_MOST_STOPS = 4
_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}
# Fields that change the answer, with the value that asks for nothing.
_NOT_HERE: Mapping[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "echo": (None, False),
    "suffix": (None, ""),
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
}


class RefusedError(InputError):
    """A request that cannot be granted; the fields are those of OpenAI's error object."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """One request.

    Attributes
    ----------
    model : as the client named it
    messages : of a chat, with plain text; a completion has one, its prompt
    most : tokens of the answer
    stops : texts that end the answer and are left out
    """

    kind: Kind
    model: str
    messages: tuple[Mapping[str, str], ...]
    most: int
    sampling: Sampling
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False

    @property
    def asked(self) -> str:
        """The last message of the user: what routers that embed prompts embed."""
        mine = [m["content"] for m in self.messages if m["role"] == "user"]
        return mine[-1] if mine else self.messages[-1]["content"]


def read_wish(body: Any, kind: Kind) -> Wish:
    """Return the request in a JSON body. Raises RefusedError naming the field."""
    if not isinstance(body, Mapping):
        raise RefusedError("the body: expected a JSON object")
    for field, nothing in _NOT_HERE.items():
        if body.get(field) not in nothing:
            raise RefusedError(f"{field}: this server does not have it; leave it out", param=field)
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RefusedError("model: expected the name of a model, see /v1/models", param="model")
    options = body.get("stream_options")
    try:
        sampling = Sampling(
            temperature=_number(body, "temperature", 0.0),
            top_p=_number(body, "top_p", 1.0),
            seed=_whole(body, "seed", None, least=None),
        )
    except RefusedError:
        raise
    except InputError as error:
        raise RefusedError(str(error), param=str(error).partition(":")[0]) from error
    bound = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    most = _whole(body, bound, MOST_TOKENS, least=1)
    assert most is not None
    return Wish(
        kind=kind,
        model=model,
        messages=_messages(body) if kind == "chat" else (_prompt(body),),
        most=most,
        sampling=sampling,
        stops=_stops(body.get("stop")),
        stream=body.get("stream") is True,
        include_usage=isinstance(options, Mapping) and options.get("include_usage") is True,
    )


def _messages(body: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise RefusedError("messages: expected a list of at least one message", param="messages")
    found = []
    for place, message in enumerate(given):
        where = f"messages[{place}]"
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            roles = ", ".join(_ROLES)
            raise RefusedError(f"{where}: expected a role among {roles}", param=where)
        text = _text(message.get("content"), f"{where}.content")
        found.append({"role": _ROLES[message["role"]], "content": text})
    return tuple(found)


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RefusedError(f"{where}: expected text; this server reads nothing else", param=where)
    return "\n".join(str(text) for text in texts)


def _prompt(body: Mapping[str, Any]) -> Mapping[str, str]:
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise RefusedError("prompt: expected one text", param="prompt")
    return {"role": "user", "content": prompt}


def _stops(given: Any) -> tuple[str, ...]:
    stops: Sequence[Any] = [given] if isinstance(given, str) else given or []
    is_list = isinstance(stops, list) and len(stops) <= _MOST_STOPS
    if not is_list or not all(isinstance(stop, str) and stop for stop in stops):
        raise RefusedError(f"stop: expected a text or up to {_MOST_STOPS} of them", param="stop")
    return tuple(stops)


def _number(body: Mapping[str, Any], field: str, otherwise: float) -> float:
    value = body.get(field)
    if value is None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedError(f"{field}: expected a number, got {value!r}", param=field)
    return float(value)


def _whole(
    body: Mapping[str, Any], field: str, otherwise: int | None, *, least: int | None
) -> int | None:
    value = body.get(field)
    if value is None:
        return otherwise
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    if not is_whole or (least is not None and value < least):
        at = "" if least is None else f" of at least {least}"
        raise RefusedError(f"{field}: expected a whole number{at}, got {value!r}", param=field)
    return int(value)
