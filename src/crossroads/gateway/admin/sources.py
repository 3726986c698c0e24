"""Everything the admin server shows and does, as callables that whoever builds the gateway gives.

All are optional: what is absent answers 404 in the API and is explained in the dashboard. They run
on the event loop and may be plain functions or coroutines; whatever they return is plain data for
JSON (mappings, lists, texts, numbers).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from crossroads.gateway.contracts import Record

T = TypeVar("T")
Maybe: TypeAlias = T | Awaitable[T]
Facts: TypeAlias = Mapping[str, Any]
Row: TypeAlias = Mapping[str, Any] | Record


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the gateway: ``headers`` with names in lower case, ``body`` as sent."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminSources:
    """What the admin server may ask.

    Attributes
    ----------
    health : ``compose_health``'s answer: ``status``, ``parts``
    metrics : Prometheus text
    traffic : by seconds back: ``History.series``
    summary : by Unix time: a ledger's figures since then (``LedgerReader.summary``); its ``saved``
        goes before the one of ``traffic``
    models : what ``GET /v1/models`` lists, with the cards' facts: ``name``, ``kind`` (``model`` or
        ``policy``), ``context``, ``inputs``, ``tools``, ``residency``, ``usd_per_mtok_in``,
        ``usd_per_mtok_out``
    upstreams : by model, ``Engine.health``: ``state`` (closed, half-open, open), ``state_for_s``,
        ``failure_share``, ``in_flight``, ``num_calls``, ``num_failures``, ``answer_s``,
        ``first_event_s``, ``last_error``, ``last_error_time``
    governance : ``keys`` (``id``, ``team``, ``models``, ``expires``, ``disabled``), ``budgets``
        (``name``, ``scope``, ``usd``, ``spent_usd``, ``period``, ``elapsed_share``, ``reset_at``,
        ``paced``, ``price``), ``store``
    create_key : from ``name``, ``team``, ``models`` to the key's facts and its ``secret``
    revoke_key : whether there was such a key
    decisions : the newest first, at most so many; filters are ``model``, ``policy``, ``key``,
        ``status`` (``ok``, ``failed``), all texts
    decision : one of them, or None
    policies : by name: ``kind``, ``models``, ``objective``, ``version`` and what else there is
    frontier : of a policy, and at a price (quality per USD; None for the operating point):
        ``points`` (``quality``, ``cost_usd``, ``price``), ``models`` (``model``, ``quality``,
        ``cost_usd``), ``operating`` and ``preview`` (points, the latter with ``shares`` by model
        where known), ``unit`` of cost, ``source`` (how it was measured, as a phrase)
    regret : ``regret``, ``low``, ``high``, ``best_model``, ``calls``, ``method``
    drift : ``alarm``, ``statistic``, ``threshold``, ``calls``, ``method``
    reload : read the configuration anew; ``changed``, ``message``
    check_config : of YAML text, or of the file in use: ``ok``, ``problems``
    playground : answers a chat request's JSON in this process
    config_path : of the file in use, to be shown
    gateway_url : where clients reach the gateway, to be shown
    """

    health: Callable[[], Maybe[Facts]] | None = None
    metrics: Callable[[], Maybe[bytes]] | None = None
    traffic: Callable[[float], Maybe[Facts]] | None = None
    summary: Callable[[float], Maybe[Facts]] | None = None
    models: Callable[[], Maybe[Sequence[Facts]]] | None = None
    upstreams: Callable[[], Maybe[Mapping[str, Facts]]] | None = None
    governance: Callable[[], Maybe[Facts]] | None = None
    create_key: Callable[[Facts], Maybe[Facts]] | None = None
    revoke_key: Callable[[str], Maybe[bool]] | None = None
    decisions: Callable[[int, Mapping[str, str]], Maybe[Sequence[Row]]] | None = None
    decision: Callable[[str], Maybe[Row | None]] | None = None
    policies: Callable[[], Maybe[Mapping[str, Facts]]] | None = None
    frontier: Callable[[str, float | None], Maybe[Facts]] | None = None
    regret: Callable[[], Maybe[Facts]] | None = None
    drift: Callable[[], Maybe[Facts]] | None = None
    reload: Callable[[], Maybe[Facts]] | None = None
    check_config: Callable[[str | None], Maybe[Facts]] | None = None
    playground: Callable[[bytes], Maybe[Reply]] | None = None
    config_path: str = ""
    gateway_url: str = ""
