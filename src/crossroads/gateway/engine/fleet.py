"""The models there are: who speaks what, how each is doing, and the rules for asking them."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple, get_args

from crossroads.core.errors import InputError, unknown_name
from crossroads.gateway.call import Body, Call, Dialect
from crossroads.gateway.contracts import Order, Upstream
from crossroads.gateway.engine.breaker import Breaker, Clock
from crossroads.gateway.engine.health import ModelHealth
from crossroads.gateway.engine.hedge import HedgeBudget
from crossroads.gateway.engine.settings import EngineSettings
from crossroads.gateway.errors import Headers

Sleep = Callable[[float], Awaitable[object]]
_ONCE = b"idempotency-key"
_ID = b"x-request-id"


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
        orders: dict[Dialect, Order] = {}
        is_once = _ONCE in call.headers
        stops: list[Stop] = []
        for name in names:
            dialect = dialects.get(name)
            if dialect is None:
                continue
            order = orders.get(dialect)
            if order is None:
                order = self.order(call, dialect, call.in_dialect(dialect), deadline)
                orders[dialect] = order
            stops.append(Stop(name, _once(call, name, order) if is_once else order))
        return stops

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
