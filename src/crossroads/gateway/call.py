"""One request on its way through the gateway: who asks for what, and where its time went."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Generic, Literal, Self, TypeVar, overload

from crossroads.prompts.experts.base import content_text, last_user_text

Dialect = Literal["chat", "completions", "responses", "messages", "embeddings"]
"""The API a request, an answer or an event is written in; the first is the gateway's own.

``chat``, ``completions``, ``responses`` and ``embeddings`` are OpenAI's, ``messages`` is
Anthropic's. An event of a stream is the parsed JSON object of its data (``[DONE]`` is none): a
chunk in ``chat`` and ``completions``, an object with ``type`` in the others.
"""

GATEWAY_FIELDS = frozenset({"routing_preferences", "crossroads"})
"""Fields of a request that are the gateway's own: never forwarded."""

Body = dict[str, Any]
Event = dict[str, Any]

_CHARACTERS_PER_TOKEN = 4  # of English text, by the vendors' own rule of thumb
_TOKENS_OF_MEDIA = 1_000  # order of magnitude of the vendors' counts for an image
_TEXT_ONLY = frozenset({"text"})


_IDS_AT_ONCE = 256
_unused_ids: list[str] = []


def random_id() -> str:
    """Return 32 hexadecimal digits of chance.

    The system is asked for many at a time: each question is a system call.
    """
    while True:
        try:
            return _unused_ids.pop()
        except IndexError:
            digits = os.urandom(16 * _IDS_AT_ONCE).hex()
            _unused_ids.extend(digits[at : at + 32] for at in range(0, len(digits), 32))


os.register_at_fork(after_in_child=_unused_ids.clear)  # else two processes give out the same


def decision_id() -> str:
    """Return ``dec_`` and 32 hexadecimal digits: Unix milliseconds in the first 12, then chance.

    Ids in the order of time are added at the end of a database's index; others each dirty a page
    of their own.
    """
    return f"dec_{time.time_ns() // 1_000_000:012x}{random_id()[:20]}"


T = TypeVar("T")


class lazy(Generic[T]):  # noqa: N801 - used as a decorator
    """A property computed once, without the lock that ``functools.cached_property`` takes for it
    until Python 3.12: it costs more than most of these values.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, owner: None, kind: type) -> Self: ...

    @overload
    def __get__(self, owner: object, kind: type) -> T: ...

    def __get__(self, owner: object | None, kind: type) -> Self | T:
        if owner is None:
            return self
        value = owner.__dict__[self._name] = self._compute(owner)
        return value


@dataclass(slots=True)
class Phases:
    """Seconds of one call by phase; what is left of the total is ``relay``.

    Attributes
    ----------
    started : ``time.perf_counter`` when the request's head was read
    queue : waiting for limits, and for a place at the upstream
    route : deciding
    connect : getting a connection
    upstream : from the request sent to the end of the answer, less the time to relay it; of all
        attempts, the waits between them, and models that judge an answer
    first_token : from ``started`` to the first event of a stream; None before, and without one
    """

    started: float = field(default_factory=time.perf_counter)
    queue: float = 0.0
    route: float = 0.0
    connect: float = 0.0
    upstream: float = 0.0
    first_token: float | None = None

    @property
    def total(self) -> float:
        """Seconds since the request came in."""
        return time.perf_counter() - self.started

    @property
    def relay(self) -> float:
        """Seconds in the gateway that no other phase counts."""
        return max(0.0, self.total - self.queue - self.route - self.connect - self.upstream)


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who asks: a virtual key's owner. ``ANYBODY`` where the gateway has no keys.

    Attributes
    ----------
    key_id : public name of the key, never its secret
    team : that the key belongs to; "" without
    models : names (models and policies) the key may ask for; None for all
    tags : that rules see, besides those of the request
    residency : regions its data may be sent to; empty for all
    """

    key_id: str
    team: str = ""
    models: frozenset[str] | None = None
    tags: frozenset[str] = frozenset()
    residency: frozenset[str] = frozenset()


ANYBODY = Client(key_id="")


@dataclass(kw_only=True, eq=False)
class Call:
    """A request, parsed and checked.

    Attributes
    ----------
    dialect : API that was called, and in which the answer is due
    model : what the client asked for: a model, a policy, or ``auto``
    body : the request in the dialect ``chat`` (``embeddings``: as sent). Not to be changed.
    native : the request as sent, where ``dialect`` is not ``chat``
    is_stream : whether events are due
    size : bytes of the request's body
    client : who asks
    headers : of the request, lower-case
    id : decision id, see ``decision_id``
    request_id : the client's own, or a new one
    phases : where the time goes
    """

    dialect: Dialect
    model: str
    body: Body
    native: Body | None = None
    is_stream: bool = False
    size: int = 0
    client: Client = ANYBODY
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    id: str = field(default_factory=decision_id)
    request_id: str = ""
    phases: Phases = field(default_factory=Phases)

    def in_dialect(self, dialect: Dialect) -> Body:
        """Return what is forwarded: the request in its own dialect or in ``chat``."""
        own = dialect == self.dialect and self.native is not None
        body = self.native if own else self.body
        assert body is not None
        if GATEWAY_FIELDS.isdisjoint(body):
            return body
        return {name: value for name, value in body.items() if name not in GATEWAY_FIELDS}

    @lazy
    def text(self) -> str:
        """The last user message: what is routed by."""
        if self.dialect == "embeddings":
            given = self.body.get("input")
            return given if isinstance(given, str) else ""
        messages = self.body.get("messages")
        if messages.__class__ is list and messages and messages[-1].__class__ is dict:
            last = messages[-1]  # nearly always the user's, of one text
            if last.get("role") == "user" and last.get("content").__class__ is str:
                text: str = last["content"]
                return text
        return last_user_text(messages)

    @lazy
    def input_tokens(self) -> int:
        """Estimate of the prompt's tokens: by the request's size, or its text beside media."""
        if len(self.inputs) == 1:
            return self.size // _CHARACTERS_PER_TOKEN + 1
        media = _TOKENS_OF_MEDIA * sum(_kind(part) != "text" for part in self._parts())
        return len(self.conversation_text) // _CHARACTERS_PER_TOKEN + media

    @property
    def max_output_tokens(self) -> int | None:
        """The bound the client set, if any.

        The larger of the two names: both are forwarded, and an upstream may read either. None too
        where one of them is no bound: some servers take -1 for as much as there is.
        """
        body = self.body
        newer, older = body.get("max_completion_tokens"), body.get("max_tokens")
        if newer is None and older is None:
            return None
        if newer is None or older is None:
            return _whole(older if newer is None else newer) or None
        bounds = _whole(newer), _whole(older)
        return max(bounds) if min(bounds) else None

    @property
    def num_choices(self) -> int:
        """Answers asked for at once (``n``)."""
        value = self.body.get("n")
        return 1 if value is None else max(1, _whole(value))

    @lazy
    def inputs(self) -> frozenset[str]:
        """Kinds of content among the messages: ``text``, and ``image``, ``audio``, ``file``."""
        for message in self._messages:
            if message.__class__ is not dict or message.get("content").__class__ is not str:
                return frozenset({"text", *map(_kind, self._parts())})
        return _TEXT_ONLY

    @lazy
    def has_tools(self) -> bool:
        return bool(self.body.get("tools") or self.body.get("functions"))

    @lazy
    def metadata(self) -> dict[str, str]:
        """The request's ``metadata`` field, texts only."""
        given = self.body.get("metadata")
        given = given if isinstance(given, Mapping) else {}
        return {str(key): value for key, value in given.items() if isinstance(value, str)}

    @lazy
    def tags(self) -> frozenset[str]:
        """Tags of the header ``x-crossroads-tags`` (separated by commas) and of the key."""
        given = self.headers.get(b"x-crossroads-tags")
        if given is None:
            return self.client.tags
        tags = given.decode("latin-1").split(",")
        return self.client.tags | {tag.strip() for tag in tags if tag.strip()}

    @lazy
    def session(self) -> str:
        """What sticky routing keeps together: ``x-crossroads-session``, else ``user``, else ""."""
        given = self.headers.get(b"x-crossroads-session")
        if given:
            return given.decode("latin-1")
        user = self.body.get("user")
        return user if isinstance(user, str) else ""

    @lazy
    def conversation_text(self) -> str:
        """All text of all messages, for what judges more than the last one."""
        messages = self._messages
        return "\n".join(content_text(m.get("content")) for m in messages if isinstance(m, dict))

    def _parts(self) -> Iterator[Any]:
        """Yield the parts of messages that are made of parts."""
        for message in self._messages:
            content = message.get("content") if isinstance(message, Mapping) else None
            if isinstance(content, list):
                yield from content

    @property
    def _messages(self) -> list[Any]:
        given = self.body.get("messages")
        return given if isinstance(given, list) else []


def _whole(value: Any) -> int:
    """Return a number at least as large as any server may read the value as; 0 for none."""
    if value.__class__ is int:
        number: int = value
        return max(0, number)
    if not isinstance(value, float | str):
        return 0
    try:
        return max(0, ceil(float(value)))  # lenient servers take 8.0 and "8" for 8
    except (ValueError, OverflowError):
        return 0


def _kind(part: Any) -> str:
    kind = str(part.get("type", "text")) if isinstance(part, Mapping) else "text"
    for name in ("image", "audio", "file"):
        if name in kind:
            return name
    return "text"
