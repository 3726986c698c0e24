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
    metrics : Prometheus text, ``GatewayTelemetry.render``
    traffic : by seconds back, ``History.series``
    summary : by Unix time, a ledger's figures since then (``LedgerReader.summary``)
    models : what ``GET /v1/models`` lists; ``name``, and ``kind`` (``model`` or ``policy``)
    upstreams : by model, ``Engine.health``
    governance : ``KeyGovernor.describe``: ``keys``, ``teams``, ``store``
    create_key : ``KeyStore.create``: from a name, and fields of ``KeySettings``, to the secret
    revoke_key : ``KeyStore.revoke``; raises CrossroadsError for a name there is not
    decisions : at most so many, the newest first; the filters are fields of ``ledger.Filters``:
        ``model``, ``policy``, ``key_id`` (texts), ``is_error`` (bool)
    decision : one of them by its id, or None; with ``feedback`` where there is some
    policies : by name, ``CompiledPolicies.describe``
    preview : of a learned policy by name, at a price in quality per USD (``CompiledPolicies``'s)
    regret : ``evaluation.live_regret``
    drift : by learned policy, the state of its alarm (``drift`` of the policy's health)
    reload : read the configuration anew; ``changed``, ``message``
    check_config : of YAML text, or None for the file in use: ``ok``, and ``problems``, texts or
        objects with ``level``, ``place``, ``message``
    playground : answers a chat request's JSON, with a key or "", in this process; `in_process`
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
    create_key: Callable[..., Maybe[str]] | None = None
    revoke_key: Callable[[str], Maybe[None]] | None = None
    decisions: Callable[[int, Mapping[str, Any]], Maybe[Sequence[Row]]] | None = None
    decision: Callable[[str], Maybe[Row | None]] | None = None
    policies: Callable[[], Maybe[Mapping[str, Facts]]] | None = None
    preview: Callable[[str, float], Maybe[Facts]] | None = None
    regret: Callable[[], Maybe[Facts]] | None = None
    drift: Callable[[], Maybe[Mapping[str, Facts]]] | None = None
    reload: Callable[[], Maybe[Facts]] | None = None
    check_config: Callable[[str | None], Maybe[Facts]] | None = None
    playground: Callable[[bytes, str], Maybe[Reply]] | None = None
    config_path: str = ""
    gateway_url: str = ""
