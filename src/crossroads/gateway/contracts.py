"""What the rooms of the gateway promise each other.

A request passes through them in this order; ``crossroads.gateway.pipeline`` is the only place that
knows all of them::

    Surface.parse -> Governor.admit -> Cache.get -> Policies.choose -> Grant.reserve
      -> Engine.complete | Engine.stream (-> Upstream ...) -> Surface.render
      -> Grant.settle, Cache.put, Ledger.append, Telemetry.observe

``Order``, ``Usage`` and ``Choice`` are not to be changed once made; they are not frozen, since
making frozen ones takes twice the time and some are made for every request.

Whatever goes wrong with a request is an ``ApiError`` (what the client did, or was not allowed) or
an ``ExpertError`` (what an upstream did).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from crossroads.core.decision import Decision
from crossroads.gateway.call import Body, Call, Client, Dialect, Event, Phases
from crossroads.gateway.errors import ApiError, Headers
from crossroads.prompts.experts.base import ExpertError

# --- upstreams -----------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Order:
    """What an upstream is asked.

    Attributes
    ----------
    dialect : of the request, and of the answer that is due
    body : the request; the upstream puts its own name of the model into a copy
    headers : to be passed on (``traceparent``, ...); never a key
    phases : of the call; the upstream adds to ``queue``, ``connect`` and ``upstream``
    deadline : ``time.monotonic`` by which the answer must be whole; None for the upstream's own
    """

    dialect: Dialect
    body: Mapping[str, Any]
    headers: Headers = field(default_factory=list)
    phases: Phases = field(default_factory=Phases)
    deadline: float | None = None


class Upstream(Protocol):
    """A model behind an endpoint or in this process.

    ``start`` before the first order, ``close`` last. Cancelling a call cancels it upstream at once.
    """

    @property
    def name(self) -> str: ...

    @property
    def speaks(self) -> frozenset[Dialect]:
        """Dialects an order may have; all but ``embeddings``-only upstreams speak ``chat``."""
        ...

    async def start(self) -> None:
        """Load, or make ready to connect. Raises CrossroadsError when it cannot work here."""
        ...

    async def complete(self, order: Order) -> Body:
        """Return the whole answer in the order's dialect. Raises ExpertError."""
        ...

    def stream(self, order: Order) -> AsyncGenerator[list[Event], None]:
        """Yield events in batches, as they arrive; ending normally means the answer is whole.

        Token counts come with the last events where the upstream knows them, asked for or not.
        Raises ExpertError, also for a stream that was cut: then nothing says it is complete.
        """
        ...

    async def close(self) -> None: ...


# --- answers -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Usage:
    """Tokens of one answer. ``is_estimated`` where the upstream did not say and we counted."""

    input_tokens: int = 0
    output_tokens: int = 0
    is_estimated: bool = False


JUDGED = "judge"
"""Code of an attempt in which a model only judged the answer of another."""


CANCELLED = "cancelled"
"""Code of an attempt that was given up: a hedge that lost, or one whose client left."""


NO_API = "no_api"
"""Code of an attempt at a server that lacks the API of the call: it is asked in ``chat`` next."""


@dataclass(slots=True)
class Attempt:
    """One try at one model. ``status`` is 200 for an answer, 0 while it runs or was given up."""

    model: str
    status: int = 0
    code: str = ""
    seconds: float = 0.0
    usage: Usage | None = None  # of what it produced, whole or not; None where nothing came


@dataclass(slots=True)
class Tally:
    """What became of one call; the engine writes it while the answer is under way.

    Attributes
    ----------
    model : who answers, once known; of a continued stream who began it, and at its end the last
    dialect : of the answer or of the events: the call's own, or ``chat``
    attempts : every try, in order, hedges and escalations too
    usage : of the answer the client gets
    finish : why the answer ended (``stop``, ``length``, ...), in the words of ``chat``
    is_complete : whether a whole answer was relayed
    text : the answer's text so far
    answer : the whole answer in ``dialect``, once there
    verdict : what the verifier of a cascade said, as plain data
    skipped : models that were due and not asked, since their breakers were open
    writers : models that wrote a stream, in order, where it broke and was continued; else empty
    """

    model: str = ""
    dialect: Dialect = "chat"
    attempts: list[Attempt] = field(default_factory=list)
    usage: Usage | None = None
    finish: str | None = None
    is_complete: bool = False
    text: str = ""
    answer: Body | None = None
    verdict: Mapping[str, Any] | None = None
    skipped: tuple[str, ...] = ()
    writers: tuple[str, ...] = ()

    @property
    def num_fallbacks(self) -> int:
        """Models given up, or not even asked, before the one that answers."""
        if len(self.attempts) <= 1 and not self.skipped:
            return 0
        told = {tried.model for tried in self.attempts if tried.code not in (JUDGED, CANCELLED)}
        told.update(self.skipped)
        return max(0, len(told) - 1)


class Engine(Protocol):
    """Gets an answer out of the models of a choice: retries, fallbacks, breakers, hedges."""

    async def complete(self, call: Call, choice: Choice, tally: Tally) -> Body:
        """Return the whole answer in ``tally.dialect``. Raises ExpertError when all failed."""
        ...

    def stream(self, call: Call, choice: Choice, tally: Tally) -> AsyncGenerator[list[Event], None]:
        """Yield batches of events in ``tally.dialect``, which is set before the first.

        Ending normally means the answer is whole. Raises ExpertError before the first batch when
        all failed, and after it when the stream broke and nobody could continue it.
        """
        ...


# --- policies ------------------------------------------------------------------------------------


class Check(Protocol):
    """The verifier of a cascade: is this answer good enough to be given?"""

    async def accepts(self, call: Call, model: str, answer: Body) -> Mapping[str, Any]:
        """Return plain data with at least ``accepted`` (bool) and ``reason`` (one sentence).

        Where a model judged, ``judge`` is its name and ``usage`` what it told, as in ``chat``.

        ``answer`` is in the dialect ``chat``. Raises ExpertError where it needs a model that fails;
        the answer then counts as not accepted.
        """
        ...

    def most(self, call: Call) -> tuple[str, Usage] | None:
        """Return the model that judges and the tokens it takes at most; None where none does."""
        return None


@dataclass(slots=True, kw_only=True)
class Choice:
    """Who shall answer, and why.

    Attributes
    ----------
    model : asked first
    fallbacks : asked in this order when those before fail
    policy : name of what chose, ``direct`` where the request names a model
    version : of the policy, so that a replay knows what to compare with
    reason : one sentence
    decision : of the learned router, where one decided
    propensity : probability with which the policy chooses ``model`` for this call
    probabilities : of every model it may choose, where the choice was random; else empty
    costs : expected of a call to each model, USD; of those that are known
    is_explored : whether chance chose another model than the best known
    features : embedding of the prompt, little-endian float16, where the policy has it
    check : verifies the answer of ``model`` before it is given; None for no cascade
    escalate_to : asked in order when the check refuses
    hedge_after : seconds after which a second model is asked beside the first; None for never
    labels : further facts for headers and ledger (``canary``, ``degraded``, ...)
    headers : what a response says of it, kept by whoever renders it: many calls share a choice
    """

    model: str
    fallbacks: tuple[str, ...] = ()
    policy: str = "direct"
    version: str = ""
    reason: str = "the request names the model"
    decision: Decision | None = None
    propensity: float = 1.0
    probabilities: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    is_explored: bool = False
    features: bytes | None = None
    check: Check | None = None
    escalate_to: tuple[str, ...] = ()
    hedge_after: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    headers: Headers | None = field(default=None, init=False, repr=False, compare=False)


class Policies(Protocol):
    """Everything ``model`` in a request can name."""

    @property
    def names(self) -> Sequence[str]:
        """Policies and models, in the order ``GET /v1/models`` lists them."""
        ...

    async def choose(self, call: Call, *, cost_price: float = 0.0) -> Choice:
        """Return who answers. ``cost_price``: quality per USD that a paced budget asks for.

        Raises ApiError: 404 unknown name, 400 where no eligible model is left, 403 where the
        client may not ask for it.
        """
        ...


# --- governance ----------------------------------------------------------------------------------


class Grant(Protocol):
    """Leave to make one call. ``settle`` or ``release`` exactly once; both are safe to repeat."""

    @property
    def cost_price(self) -> float:
        """Quality per USD that the client's paced budget asks the policies for; 0 without."""
        ...

    @property
    def is_metered(self) -> bool:
        """Whether anything is counted; where nothing is, nobody works out what to reserve."""
        ...

    def headers(self) -> Headers:
        """``x-ratelimit-*`` in the manner of the dialect called."""
        ...

    async def reserve(self, usd: float) -> None:
        """Set money aside. Raises ApiError 429 ``insufficient_quota`` when there is none."""
        ...

    def settle(self, usage: Usage, usd: float) -> None:
        """Replace what was reserved by what it came to."""
        ...

    def release(self) -> None:
        """Give back tokens, money and the place: nothing was produced. It stays a request."""
        ...


class Governor(Protocol):
    """Keys, limits and budgets."""

    def identify(self, headers: Mapping[bytes, bytes]) -> Client:
        """Return who asks. Raises ApiError 401."""
        ...

    async def admit(self, call: Call) -> Grant:
        """Count the call against every limit of its client. Raises ApiError 403, 429."""
        ...


# --- caches, ledger, telemetry -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An answer a cache had. ``kind``: ``exact`` or ``semantic``; ``similarity`` 1 for exact."""

    model: str
    dialect: Dialect
    answer: Body
    kind: str = "exact"
    similarity: float = 1.0
    age_s: float = 0.0


class Cache(Protocol):
    """Answers given before."""

    async def get(self, call: Call) -> Kept | None:
        """Return an answer fit for this call. Never raises: a cache that fails has none."""
        ...

    def put(self, call: Call, tally: Tally) -> None:
        """Keep a complete answer, soon; returns at once."""
        ...


@dataclass(slots=True, kw_only=True)
class Record:
    """One row of the ledger: one call, decided and answered. Durations in milliseconds.

    ``cost_usd`` covers every attempt that produced something, ``saved_usd`` what a cache saved.
    ``probabilities`` and ``scores`` are by model. ``prompt``, ``answer`` and ``features`` are kept
    only where the user asked for it.
    """

    decision_id: str
    request_id: str
    time: float  # Unix seconds at which the request came in
    key_id: str = ""
    team: str = ""
    dialect: Dialect = "chat"
    asked: str = ""
    policy: str = ""
    version: str = ""
    reason: str = ""
    rule: str = ""
    chosen: str = ""  # by the policy
    model: str = ""  # that answered; of a continued stream the one that ended it
    status: int = 0
    error: str = ""
    is_stream: bool = False
    is_complete: bool = False
    finish: str = ""
    attempts: list[tuple[str, int, str, float]] = field(default_factory=list)
    cache: str = ""
    propensity: float = 1.0
    probabilities: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)  # expected of each model, USD
    is_explored: bool = False
    features_hash: str = ""
    features: bytes | None = None
    confidence: float | None = None
    predicted_quality: float | None = None
    predicted_cost_usd: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    is_usage_estimated: bool = False
    cost_usd: float = 0.0
    saved_usd: float = 0.0
    queue_ms: float = 0.0
    route_ms: float = 0.0
    connect_ms: float = 0.0
    upstream_ms: float = 0.0
    relay_ms: float = 0.0
    total_ms: float = 0.0
    first_token_ms: float | None = None
    session: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    verdict: Mapping[str, Any] | None = None
    prompt: str | None = None
    answer: str | None = None


class Ledger(Protocol):
    """Remembers every call. Appending never waits and never raises."""

    def append(self, record: Record) -> None: ...


class Telemetry(Protocol):
    """Metrics, logs and traces. Never raises."""

    def begin(self, call: Call) -> None:
        """A call was admitted."""
        ...

    def end(self, record: Record) -> None:
        """It is over, well or not."""
        ...


# --- surfaces ------------------------------------------------------------------------------------


class Writer(Protocol):
    """Turns events into the bytes of one event stream of a dialect."""

    def feed(self, events: Sequence[Event]) -> bytes: ...

    def end(self) -> bytes:
        """Return the last bytes of a whole answer (``[DONE]`` in ``chat``)."""
        ...

    def fail(self, error: ApiError) -> bytes:
        """Return an error event; nothing that says the answer is whole."""
        ...


class Surface(Protocol):
    """One API: how it is asked and how it answers."""

    @property
    def dialect(self) -> Dialect: ...

    def parse(self, body: bytes, *, client: Client, headers: Mapping[bytes, bytes]) -> Call:
        """Return the call. Raises ApiError 400 naming the field that is wrong."""
        ...

    def render(self, call: Call, model: str, dialect: Dialect, answer: Body) -> bytes:
        """Return the JSON of a whole answer; ``dialect`` is the answer's."""
        ...

    def writer(self, call: Call, model: str, dialect: Dialect) -> Writer:
        """Return what writes the events of one answer given in ``dialect``."""
        ...

    def error(self, error: ApiError, request_id: str) -> bytes:
        """Return an error's body in the shape of this API."""
        ...

    def status(self, error: ApiError) -> int:
        """Return the HTTP status that this API gives such an error."""
        ...


__all__ = [
    "ApiError",
    "Attempt",
    "Cache",
    "Check",
    "Choice",
    "Engine",
    "ExpertError",
    "Governor",
    "Grant",
    "Kept",
    "Ledger",
    "Order",
    "Policies",
    "Record",
    "Surface",
    "Tally",
    "Telemetry",
    "Upstream",
    "Usage",
    "Writer",
]
