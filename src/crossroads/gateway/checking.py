"""What is wrong with a configuration, found without serving it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from crossroads.core.errors import CrossroadsError
from crossroads.gateway.build import Built, Lasting, build
from crossroads.gateway.config import ServeConfig, read_config
from crossroads.gateway.dialects import build_surfaces
from crossroads.gateway.governance import KeySettings, TeamSettings
from crossroads.gateway.ledger import check_ledger
from crossroads.gateway.telemetry import GatewayTelemetry
from crossroads.prompts.experts.environment import expand
from crossroads.prompts.pool import ModelCard

_PATIENCE_S = 5.0  # for one connection of a probe
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know. An ``error`` keeps a server from starting, a ``warning`` does not."""

    level: Literal["error", "warning"]
    place: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


async def check(path: str, *, probe: bool = False) -> list[Finding]:
    """Return what is wrong with the configuration at ``path``; empty where all is well.

    ``probe`` also connects to every upstream and opens the ledger; it sends no request.
    """
    try:
        config = read_config(path)
        quiet = config.telemetry.model_copy(update={"logs": None, "otel": None})
        lasting = Lasting(
            surfaces=build_surfaces(config.responses), telemetry=GatewayTelemetry(quiet)
        )
        built = await asyncio.to_thread(build, config, lasting)
    except CrossroadsError as error:
        return [Finding("error", "", str(error))]
    found = [*_keys(built), *_advice(built)]
    if probe:
        found += await _probe(config, built)
    return found


def _keys(built: Built) -> list[Finding]:
    """Find keys of upstreams that the environment does not have."""
    found = []
    for card in built.pool:
        try:
            if card.api_key:
                expand(card.api_key, where=f"api_key of model {card.name!r}")
        except CrossroadsError as error:
            found.append(Finding("error", f"models.{card.name}", str(error)))
    return found


def _advice(built: Built) -> list[Finding]:
    """Find what works, and still is hardly meant."""
    found = []
    config = built.config
    unpriced = [card.name for card in built.pool if card.name not in built.prices.models]
    unpriced += [
        card.name
        for card in built.pool
        if not (card.price_in or card.price_out or card.price_per_call)
        and not str(card.endpoint).startswith("local:")
        and config.governance.prices_file is None
    ]
    if unpriced:
        message = f"no price for {', '.join(sorted(set(unpriced)))}: budgets see them as free"
        found.append(Finding("warning", "pool", message))
    if (
        config.workers > 1
        and config.governance.store == "memory"
        and "store" in config.governance.model_fields_set
        and _has_limits(config)
    ):
        message = "every worker counts for itself; use sqlite:PATH or redis://, or leave it out"
        found.append(Finding("warning", "governance.store", message))
    for card in built.pool:
        if str(card.endpoint).startswith("http://") and card.api_key and not _is_near(card):
            message = "its key travels unencrypted; use https"
            found.append(Finding("warning", f"models.{card.name}", message))
    return found


def _has_limits(config: ServeConfig) -> bool:
    governance = config.governance
    holders: list[KeySettings | TeamSettings] = [*governance.keys, *governance.teams.values()]
    return governance.keys_file is not None or any(
        holder.budgets or holder.limits.model_dump(exclude_none=True) for holder in holders
    )


def _is_near(card: ModelCard) -> bool:
    return urlsplit(card.endpoint or "").hostname in ("127.0.0.1", "localhost", "::1")


async def _probe(config: ServeConfig, built: Built) -> list[Finding]:
    found = []
    if config.ledger is not None:
        try:
            await asyncio.to_thread(check_ledger, config.ledger)
        except CrossroadsError as error:
            found.append(Finding("error", "ledger", str(error)))
    cards = [card for card in built.pool if str(card.endpoint).startswith("http")]
    problems = await asyncio.gather(*(_connect(card) for card in cards))
    found += [Finding("error", f"models.{card.name}", problem)
              for card, problem in zip(cards, problems, strict=True) if problem]  # fmt: skip
    return found


async def _connect(card: ModelCard) -> str:
    """Return why a model's server cannot be reached; "" where it can."""
    parts = urlsplit(card.endpoint or "")
    port = parts.port or _PORTS[parts.scheme]
    try:
        async with asyncio.timeout(_PATIENCE_S):
            _, writer = await asyncio.open_connection(
                parts.hostname, port, ssl=parts.scheme == "https"
            )
    except (OSError, TimeoutError) as error:
        reason = str(error) or f"no connection within {_PATIENCE_S:g} s"
        return f"{parts.hostname}:{port} cannot be reached ({reason}); start it, or mend endpoint"
    writer.close()
    return ""
