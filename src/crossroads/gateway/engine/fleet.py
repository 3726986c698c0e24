"""The models there are: who speaks what, how each is doing, and the rules for asking them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple, get_args

from crossroads.core.errors import InputError, unknown_name
from crossroads.gateway.call import Body, Call, Dialect
from crossroads.gateway.contracts import Order, Upstream
from crossroads.gateway.engine.breaker import Breaker, Clock
from crossroads.gateway.engine.faults import lacks_api
from crossroads.gateway.engine.foreign import without_foreign
from crossroads.gateway.engine.health import ModelHealth
from crossroads.gateway.engine.hedge import HedgeBudget
from crossroads.gateway.engine.settings import EngineSettings
from crossroads.gateway.errors import Headers
from crossroads.prompts.experts.base import ExpertError

Sleep = Callable[[float], Awaitable[object]]
_ONCE = b"idempotency-key"
_ID = b"x-request-id"
_TRANSLATED = frozenset({"completions", "responses", "messages"})  # what ``chat`` can stand for
_NO_PATH = (
    "model %r answers 404 to %s and is asked in chat from now on; say so by 'speaks' in the pool"
)

logger = logging.getLogger(__name__)


class Stop(NamedTuple):
    """A model that may be asked, and what it would be asked."""

    model: str
    order: Order


class Fleet:
    """Upstreams by model name, with all that is known of them.

    Parameters are those of ``Engine``. Raises InputError where the settings name an unknown model.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        settings: EngineSettings,
        *,
        prefills: Collection[str] = (),
        contexts: Mapping[str, int] | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.upstreams = dict(upstreams)
        self.settings = settings
        self.prefills = frozenset(prefills)
        self.contexts = dict(contexts or {})
        self.clock = clock
        self.sleep = sleep
        self.rng = rng or random.Random()
        self.hedges = HedgeBudget(settings.hedge)
        self.health = {name: self._new_health() for name in self.upstreams}
        self._dialects = {
            dialect: _speakers(self.upstreams, dialect) for dialect in get_args(Dialect)
        }
        self._native = {
            dialect: {name: spoken for name, spoken in speakers.items() if spoken == dialect}
            for dialect, speakers in self._dialects.items()
        }
        for name in settings.continuation.fields:
            if name not in self.upstreams:
                problem = unknown_name("model", name, self.upstreams)
                raise InputError(f"failures.continuation.fields: {problem}")
        passed = [name.encode() for name in settings.pass_headers]
        self._tells_id = _ID in passed
        self._pass_headers = tuple(name for name in passed if name != _ID)
        self._passed = frozenset(self._pass_headers)

    def adopt(self, old: Fleet) -> None:
        """Go on with what ``old`` knows of the models that both have."""
        for name in self.health.keys() & old.health.keys():
            self.health[name] = known = old.health[name]
            known.breaker.configure(self.settings.breaker)

    def stops(
        self, call: Call, names: Iterable[str], deadline: float, only: Dialect | None = None
    ) -> list[Stop]:
        """Return those of ``names`` that can serve the call, each with its order.

        A model gets the request in the dialect of the call where it speaks that, else in ``chat``;
        with ``only``, in that dialect or not at all.
        """
        dialects = self._dialects[call.dialect] if only is None else self._native[only]
        orders: dict[tuple[Dialect, bool], Order] = {}
        is_once = _ONCE in call.headers
        is_of_messages = call.dialect == "messages"
        stops: list[Stop] = []
        for name in names:
            dialect = dialects.get(name)
            if dialect is None:
                continue
            is_foreign = is_of_messages and name not in self._native["messages"]
            order = orders.get((dialect, is_foreign))
            if order is None:
                body = call.in_dialect(dialect)
                body = without_foreign(body) if is_foreign else body
                order = self.order(call, dialect, body, deadline)
                orders[dialect, is_foreign] = order
            stops.append(Stop(name, _once(call, name, order) if is_once else order))
        return stops

    def unlearn(self, stop: Stop, error: ExpertError) -> bool:
        """Return whether a failure means that the model is to be asked in ``chat`` instead.

        From then on it is. What an upstream speaks is often assumed, and a server without a path
        answers 404 like one without a model.
        """
        dialect = stop.order.dialect
        if dialect not in _TRANSLATED or not lacks_api(error):
            return False
        if "chat" not in self.upstreams[stop.model].speaks:
            return False
        if self._native[dialect].pop(stop.model, None) is not None:
            logger.warning(_NO_PATH, stop.model, dialect)
        self._dialects[dialect][stop.model] = "chat"
        return True

    def translated(self, call: Call, stop: Stop, deadline: float) -> Stop | None:
        """Return the stop as it would be made now, where its model has unlearned its dialect."""
        dialect = stop.order.dialect
        if dialect == "chat" or self._dialects[dialect].get(stop.model) != "chat":
            return None
        return next(iter(self.stops(call, (stop.model,), deadline)), None)

    def speakers(self, names: Iterable[str], dialect: Dialect) -> list[str]:
        """Return those of ``names`` that speak the dialect themselves, each once, in order."""
        return [name for name in dict.fromkeys(names) if name in self._native[dialect]]

    def order(self, call: Call, dialect: Dialect, body: Body, deadline: float) -> Order:
        """Return an order with the headers that may be passed on."""
        given = call.headers
        headers: Headers = []
        if not self._passed.isdisjoint(given):
            headers = [(n, given[n]) for n in self._pass_headers if n in given]
        if self._tells_id and call.request_id:
            headers.append((_ID, call.request_id.encode("ascii", "replace")))
        return Order(
            dialect=dialect, body=body, headers=headers, phases=call.phases, deadline=deadline
        )

    def _new_health(self) -> ModelHealth:
        return ModelHealth(Breaker(self.settings.breaker, clock=self.clock, rng=self.rng))


def _once(call: Call, model: str, order: Order) -> Order:
    """Return the order with an idempotency key that names this request to this model alone.

    All clients share the gateway's account upstream, where equal keys would share an answer, and
    models that share an endpoint would be refused another body with the same key.
    """
    digest = hashlib.blake2b(digest_size=16, person=b"idempotency-key")
    for part in (call.client.key_id.encode(), model.encode(), order.dialect.encode()):
        digest.update(b"%d:%s" % (len(part), part))
    digest.update(call.headers[_ONCE])
    key = digest.hexdigest().encode()
    headers = [(name, key if name == _ONCE else value) for name, value in order.headers]
    return replace(order, headers=headers)


def _speakers(upstreams: Mapping[str, Upstream], dialect: Dialect) -> dict[str, Dialect]:
    """Return by model in which dialect it gets a call of ``dialect``."""
    found: dict[str, Dialect] = {}
    for name, upstream in upstreams.items():
        if dialect in upstream.speaks:
            found[name] = dialect
        elif "chat" in upstream.speaks and dialect != "embeddings":
            found[name] = "chat"
    return found
