"""From the cards of a pool to the upstreams behind them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from crossroads.core.errors import InputError
from crossroads.core.http.dial import Target, parse_endpoint
from crossroads.core.http.pool import ConnectionPool
from crossroads.gateway.contracts import Upstream
from crossroads.gateway.upstreams.anthropic import ANTHROPIC, AnthropicUpstream
from crossroads.gateway.upstreams.http import HttpUpstream
from crossroads.gateway.upstreams.openai import OPENAI
from crossroads.gateway.upstreams.settings import UpstreamSettings
from crossroads.prompts.experts.environment import expand
from crossroads.prompts.pool import ModelCard

if TYPE_CHECKING:
    from crossroads.core.http.timeouts import Timeouts

Pools = dict[Target, ConnectionPool]

_LOCAL = "local:"


def build_upstreams(
    cards: Iterable[ModelCard],
    *,
    timeouts: Timeouts,
    settings: UpstreamSettings | None = None,
) -> dict[str, Upstream]:
    """Build the upstream of every card; models of one server share its connections.

    Raises what ``build_upstream`` raises.
    """
    pools: Pools = {}
    return {
        card.name: build_upstream(card, timeouts=timeouts, settings=settings, pools=pools)
        for card in cards
    }


def build_upstream(
    card: ModelCard,
    *,
    timeouts: Timeouts,
    settings: UpstreamSettings | None = None,
    pools: Pools | None = None,
) -> Upstream:
    """Build the upstream of a card. Nothing is loaded or connected before ``start``.

    Raises InputError for a card without an endpoint or with a malformed one and for dialects the
    API does not have, UsageError for an unknown local expert.
    """
    settings = settings or UpstreamSettings()
    if card.api == "litellm":
        from crossroads.gateway.upstreams.litellm import LitellmUpstream

        return LitellmUpstream(card, timeouts=timeouts, settings=settings)
    if card.endpoint is None:
        raise InputError(
            f"model {card.name!r} has no endpoint; add 'endpoint: https://host/v1' to its card "
            "in the pool"
        )
    if card.endpoint.startswith(_LOCAL):
        from crossroads.gateway.upstreams.local import LocalUpstream
        from crossroads.prompts.experts.registry import build_expert

        return LocalUpstream(build_expert(card), card, timeouts=timeouts, settings=settings)
    return _over_http(card, timeouts, settings, {} if pools is None else pools)


@runtime_checkable
class _Checkable(Protocol):
    def check(self) -> None: ...


def check_upstream(upstream: Upstream) -> None:
    """Find what would keep an upstream from starting: keys, certificates, a missing library.

    Nothing is connected or loaded, so what a local expert lacks shows at its start. Raises
    CrossroadsError.
    """
    if isinstance(upstream, _Checkable):
        upstream.check()


def _over_http(
    card: ModelCard, timeouts: Timeouts, settings: UpstreamSettings, pools: Pools
) -> Upstream:
    where = f"model {card.name!r}"
    proxy = None if card.proxy is None else expand(card.proxy, where=f"proxy of {where}")
    base = parse_endpoint(card.endpoint or "", where=where, proxy=proxy, ca_file=card.ca_file)
    api = ANTHROPIC if card.api == "anthropic" else OPENAI
    has = api.usual | frozenset(api.paths)
    lacking = sorted(set(card.speaks) - has)
    if lacking:
        raise InputError(
            f"{where}: speaks: {', '.join(lacking)} is no part of the {card.api} API; "
            f"expected some of {', '.join(sorted(has))}"
        )
    if base.target not in pools:
        pools[base.target] = ConnectionPool(
            base.target, max_idle=settings.max_idle, idle_s=settings.idle_s
        )
    # Anthropic's models are asked in messages alone, whatever they are asked for.
    asked = card.model_copy(update={"speaks": ("messages",)}) if api is ANTHROPIC else card
    upstream = HttpUpstream(
        asked,
        base=base,
        pool=pools[base.target],
        api=api,
        timeouts=timeouts,
        settings=settings,
    )
    return AnthropicUpstream(card, upstream) if api is ANTHROPIC else upstream
