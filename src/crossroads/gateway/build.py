"""From a configuration to a gateway that is ready to start."""

from __future__ import annotations

from dataclasses import dataclass

from crossroads.core.errors import InputError, UsageError
from crossroads.gateway.app import Gateway
from crossroads.gateway.config import ServeConfig
from crossroads.gateway.routing import AUTO
from crossroads.prompts.experts.http import Timeouts
from crossroads.prompts.experts.registry import build_expert
from crossroads.prompts.fitted import FittedRouter, load_router
from crossroads.prompts.pool import Pool, read_pool
from crossroads.prompts.preferences.backend import get_backend
from crossroads.prompts.preferences.policies import Preferences
from crossroads.prompts.preferences.router import PreferenceRouter


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A gateway, and what it serves."""

    gateway: Gateway
    models: tuple[str, ...]
    router: str | None


def build_gateway(config: ServeConfig) -> Built:
    """Load the router and build the experts.

    Raises UsageError where there is nothing to serve, InputError where the router chooses among
    models that the pool cannot reach. A router that does not load is never replaced by another
    choice.
    """
    if config.router is None and config.pool is None:
        raise UsageError(
            "nothing to serve; run: crossroads fit auto --outcomes local --out DIR, then: "
            "crossroads serve --router DIR --pool local"
        )
    router = None if config.router is None else load_router(config.router)
    pool = _pool(config, router)
    preferences = _preferences(config, pool)
    waits = config.timeouts
    timeouts = Timeouts(
        connect=waits.connect, first_byte=waits.first_byte, idle=waits.idle, total=waits.total
    )
    gateway = Gateway(
        {card.name: build_expert(card, timeouts=timeouts) for card in pool},
        router,
        preferences=preferences,
        rule=config.rule,
        api_key=config.api_key or None,
        body_limit=config.limits.body_bytes,
    )
    name = "preferences" if preferences else router.router.name if router else None
    return Built(gateway=gateway, models=pool.names, router=name)


def _preferences(config: ServeConfig, pool: Pool) -> PreferenceRouter | None:
    """Return what decides by policies, every model of which the pool can reach."""
    section = config.preferences
    if section is None:
        return None
    preferences = Preferences.parse({"default": section.default, "policies": section.policies})
    missing = [name for name in preferences.model_names if name not in pool.names]
    if missing:
        raise InputError(
            f"preferences name model {missing[0]!r}, which pool {pool.name!r} lacks; "
            f"add a card for it, or choose among {', '.join(pool.names)}"
        )
    return PreferenceRouter(preferences, get_backend(section.backend, **section.options))


def _pool(config: ServeConfig, router: FittedRouter | None) -> Pool:
    """Return the models to serve, every model of the router among them."""
    if config.pool is not None:
        pool = read_pool(config.pool)
    else:
        assert router is not None
        pool = router.pool
    if (router is not None or config.preferences is not None) and AUTO in pool.names:
        raise InputError(
            f"pool {pool.name!r} has a model named {AUTO!r}, which asks the router; rename it"
        )
    missing = [name for name in (router.pool.names if router else ()) if name not in pool.names]
    if missing:
        raise InputError(
            f"router {config.router} chooses among {', '.join(missing)}, which pool "
            f"{pool.name!r} lacks; add a card with an endpoint for each, or fit on other models"
        )
    return pool
