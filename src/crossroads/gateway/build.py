"""From a configuration to what serves it: the snapshot that a reload replaces."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from crossroads.core.errors import InputError, UsageError, unknown_name
from crossroads.core.http.timeouts import Timeouts
from crossroads.core.problems import Problem
from crossroads.gateway.caches import AnswerCache, CacheSettings, build_cache
from crossroads.gateway.call import Body
from crossroads.gateway.config import AUTO, ServeConfig
from crossroads.gateway.contracts import Ledger, Order, Telemetry, Upstream
from crossroads.gateway.dialects import Surfaces
from crossroads.gateway.engine import Engine
from crossroads.gateway.extras import ApiExtras
from crossroads.gateway.governance import KeyGovernor, PriceBook
from crossroads.gateway.governance.entries import Entries
from crossroads.gateway.policies import CompiledPolicies, compile_policies
from crossroads.gateway.policies.settings import LearnedSettings, PoliciesSettings, RulesSettings
from crossroads.gateway.problems import ConfigError
from crossroads.gateway.roster import Roster
from crossroads.gateway.services import Keeping, Services
from crossroads.gateway.standing import Standing
from crossroads.gateway.upstreams import Pools, build_upstream
from crossroads.prompts.fitted import FittedRouter, load_router
from crossroads.prompts.pool import ModelCard, Pool, read_pool

# Of a card, what is not heard in an answer: its price, how often and how it may be asked.
_UNHEARD = {
    *("api_key", "ca_file", "description", "max_parallel", "parameters", "proxy"),
    *("price_in", "price_out", "price_per_call", "requests_per_minute", "stream_usage"),
    *("timeouts", "tokens_per_minute"),
}


@dataclass(kw_only=True)
class Built:
    """A snapshot with its parts by their own types, for what looks behind the contracts."""

    config: ServeConfig
    pool: Pool
    services: Services
    policies: CompiledPolicies
    engine: Engine
    governor: KeyGovernor
    prices: PriceBook
    cache: AnswerCache | None


@dataclass(kw_only=True)
class Lasting:
    """What a snapshot gets from the process it lives in.

    With ``standing``, which holds for the first one, no file of the configuration need be right.
    """

    surfaces: Surfaces
    telemetry: Telemetry
    ledger: Ledger | None = None
    roster: Roster = field(default_factory=Roster)
    before: Built | None = None
    standing: Standing | None = None


def build(config: ServeConfig, lasting: Lasting) -> Built:
    """Compile a configuration; nothing is started yet.

    What a first request could meet is found now: raises UsageError where there is nothing to serve,
    InputError for policies, keys and prices that do not fit together, and what loading a router
    raises. A router that does not load is never replaced by another choice.
    """
    settings = config.all_policies
    standing = lasting.standing
    routers = _routers(config, settings, copies={} if standing is None else standing.routers)
    pool = _pool(config, settings, routers) if standing is None else standing.pool
    roster = lasting.roster
    pools: Pools = {}  # of this snapshot's new upstreams: models of one server share connections
    upstreams = roster.build(
        pool, lambda card: _upstream(config, card, pools), setting=_setting(config)
    )
    policies = compile_policies(
        settings,
        pool,
        routers=routers,
        speaks={name: upstream.speaks for name, upstream in upstreams.items()},
        ask_model=_asker(upstreams, config.timeouts.total),
    )
    engine = Engine(
        upstreams,
        config.failures,
        prefills=[card.name for card in pool if card.prefill],
        contexts={card.name: card.context for card in pool if card.context is not None},
    )
    before = lasting.before
    prices = PriceBook(
        pool, config.governance.prices_file, kept=None if standing is None else standing.prices
    )
    if config.baseline is not None and config.baseline not in pool.names:
        raise unknown_name("baseline", config.baseline, pool.names)
    governor = KeyGovernor(
        config.governance,
        api_key=config.api_key or None,
        prices=prices,
        kept=None if standing is None else Entries("", standing.keys),
    )
    cache = _cache(config, before)
    keep = () if config.ledger is None else config.ledger.keep
    keeping = Keeping(text="text" in keep, answers="answers" in keep, features="features" in keep)
    services = Services(
        surfaces=lasting.surfaces.by_path,
        upstreams=upstreams,
        policies=policies,
        engine=engine,
        governor=governor,
        prices=prices,
        telemetry=lasting.telemetry,
        cache=None if cache is None else cache.under(_basis(config, pool, policies)),
        ledger=lasting.ledger,
        keeping=keeping,
        body_limit=config.limits.body_bytes,
        ping_s=config.timeouts.ping,
        roster=roster,
        is_hedging=config.failures.hedge.after_s is not None,
        deciding_headers=frozenset(name.lower().encode() for name in _cache_setting(config)[1]),
        prepare=lasting.surfaces.responses.prepare,
        extras=ApiExtras(
            lasting.surfaces, body_limit=config.limits.body_bytes, is_known=policies.knows
        ),
    )

    async def close_policies() -> None:
        await asyncio.to_thread(policies.close)

    services.closers.append(close_policies)
    return Built(
        config=config,
        pool=pool,
        services=services,
        policies=policies,
        engine=engine,
        governor=governor,
        prices=prices,
        cache=cache,
    )


def _routers(
    config: ServeConfig, settings: PoliciesSettings, copies: Mapping[str, str]
) -> dict[str, FittedRouter]:
    """Load every artefact once, from its copy where there is one."""
    found: dict[str, FittedRouter] = {}
    for name, policy in settings.policies.items():
        if isinstance(policy, LearnedSettings) and policy.router not in found:
            try:
                found[policy.router] = load_router(copies.get(policy.router, policy.router))
            except InputError as error:
                if name not in config.policies:  # it stands for the field ``router``
                    raise
                problem = Problem(f"policies.{name}.router", str(error))
                raise ConfigError("", [problem]) from error
    return found


def _pool(
    config: ServeConfig, settings: PoliciesSettings, routers: Mapping[str, FittedRouter]
) -> Pool:
    """Return the models to serve, every model of the routers among them."""
    if config.pool is not None:
        pool = read_pool(config.pool)
    elif routers:
        cards: dict[str, ModelCard] = {}
        for router in routers.values():
            cards = {card.name: card for card in router.pool} | cards
        pool = Pool(name=next(iter(routers.values())).pool.name, models=tuple(cards.values()))
    else:
        raise UsageError(
            "nothing to serve; run: crossroads fit auto --outcomes local --out DIR, then: "
            "crossroads serve --router DIR --pool local"
        )
    for name in (AUTO, *settings.policies):
        if name in pool.names and (name != AUTO or settings.policies):
            raise InputError(
                f"pool {pool.name!r} has a model named {name!r}, which asks a policy; rename it"
            )
    for folder, router in routers.items():
        missing = [name for name in router.pool.names if name not in pool.names]
        if missing:
            raise InputError(
                f"router {folder} chooses among {', '.join(missing)}, which pool "
                f"{pool.name!r} lacks; add a card with an endpoint for each, or fit on other models"
            )
    return pool


def _upstream(config: ServeConfig, card: ModelCard, pools: Pools) -> Upstream:
    waits = config.timeouts
    timeouts = Timeouts(
        connect=waits.connect, first_byte=waits.first_byte, idle=waits.idle, total=waits.total
    )
    return build_upstream(card, timeouts=timeouts, settings=config.upstreams, pools=pools)


def _setting(config: ServeConfig) -> str:
    """Name what an upstream depends on beside its card."""
    return (
        f"{config.timeouts.model_dump_json(exclude={'ping'})} {config.upstreams.model_dump_json()}"
    )


def _asker(upstreams: Mapping[str, Upstream], total_s: float) -> Any:
    """Return how a verifier asks a model of the pool."""

    async def ask(model: str, body: Body) -> Body:
        async with asyncio.timeout(total_s):
            return await upstreams[model].complete(Order(dialect="chat", body=body))

    return ask


def _cache(config: ServeConfig, before: Built | None) -> AnswerCache | None:
    if before is not None and _cache_setting(before.config) == _cache_setting(config):
        return before.cache
    settings, headers = _cache_setting(config)
    return None if settings is None else build_cache(settings, headers)


def _basis(config: ServeConfig, pool: Pool, policies: CompiledPolicies) -> bytes:
    """Return a name of who answers what: the same in all workers and after a restart."""
    facts = [
        [card.model_dump(mode="json", exclude=_UNHEARD) for card in pool],
        {name: list(chain) for name, chain in config.all_policies.fallbacks.items()},
        policies.versions,
    ]
    return hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).digest()[:16]


def _cache_setting(config: ServeConfig) -> tuple[CacheSettings | None, frozenset[str]]:
    """Return what a cache depends on: its section, and the headers that rules decide by."""
    policies = config.all_policies.policies.values()
    rules = [
        rule for policy in policies if isinstance(policy, RulesSettings) for rule in policy.rules
    ]
    return config.cache, frozenset(name for rule in rules for name in rule.when.headers)
