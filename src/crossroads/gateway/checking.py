"""What is wrong with a configuration, found without serving it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from crossroads.core.errors import CrossroadsError, InputError, MissingExtraError, unknown_name
from crossroads.core.http.dial import tls_context
from crossroads.gateway.build import Built, Lasting, build
from crossroads.gateway.call import Body
from crossroads.gateway.config import ServeConfig, read_config
from crossroads.gateway.dialects import build_surfaces
from crossroads.gateway.governance import KeyFile, KeySettings, TeamSettings
from crossroads.gateway.governance.periods import parse_period
from crossroads.gateway.ledger import check_ledger
from crossroads.gateway.policies import compile_policies
from crossroads.gateway.problems import ConfigError
from crossroads.gateway.remote import SCHEMES, ping_redis
from crossroads.gateway.telemetry import GatewayTelemetry
from crossroads.gateway.upstreams import check_upstream
from crossroads.prompts.experts.environment import expand
from crossroads.prompts.pool import ModelCard, Pool, read_pool

_DAY = timedelta(days=1)
_PATIENCE_S = 5.0  # for one connection of a probe
_PORTS = {"http": 80, "https": 443}
_ADDED = ("/chat/completions", "/completions", "/messages", "/responses", "/embeddings")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know.

    An ``error`` keeps a server from starting, a ``warning`` does not; a ``note`` is good news.
    """

    level: Literal["error", "warning", "note"]
    place: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


async def check(path: str, *, probe: bool = False) -> list[Finding]:
    """Return what is wrong with the configuration at ``path``; empty where all is well.

    Nothing is made on the disk, and no message quotes what the files that the configuration names
    hold. ``probe`` also connects to every upstream, Redis and the ledger, and notes what it
    reached; it sends no request and makes no ledger where there is none.
    """
    async with AsyncExitStack() as closing:
        try:
            config = read_config(path)
        except CrossroadsError as error:
            return _told(error)
        try:
            quiet = config.telemetry.model_copy(update={"logs": None, "otel": None})
            surfaces = build_surfaces(config.responses)
            closing.push_async_callback(surfaces.close)
            lasting = Lasting(surfaces=surfaces, telemetry=GatewayTelemetry(quiet))
            built = await asyncio.to_thread(build, config, lasting)
        except CrossroadsError as error:
            besides = await asyncio.to_thread(_besides, config)
            return list(dict.fromkeys([*_told(error), *besides]))
        closing.push_async_callback(built.services.close)
        if built.cache is not None:
            closing.push_async_callback(built.cache.close)
        found = [
            *_keys(built.pool),
            *_certificates(built.pool),
            *_libraries(built),
            *advice(built, config),
        ]
        if probe:
            found += await _probe(config, built)
        return found


def _told(error: CrossroadsError) -> list[Finding]:
    """Return every field that an error names."""
    if isinstance(error, ConfigError):
        return [Finding("error", wrong.place, wrong.message) for wrong in error.problems]
    return [Finding("error", "", str(error))]


def _besides(config: ServeConfig) -> list[Finding]:
    """Find what can be told of a configuration that cannot be served, beside the reason."""
    found = []
    if config.pool is not None:
        with suppress(CrossroadsError):  # told already
            pool = read_pool(config.pool)
            found += [*_policies(config, pool), *_keys(pool), *_certificates(pool)]
    return [*found, *_nobody(config)]


def _policies(config: ServeConfig, pool: Pool) -> list[Finding]:
    """Find all that is wrong with the policies, whichever of it the server would meet first."""
    settings = config.all_policies
    try:
        compile_policies(settings, pool, ask_model=_ask_nobody).close()
    except ConfigError as error:
        # The field ``router`` stands for a policy that nobody wrote: it was told as a router.
        unwritten = {
            f"policies.{name}.router" for name in settings.policies.keys() - config.policies
        }
        return [found for found in _told(error) if found.place not in unwritten]
    except CrossroadsError:
        return []  # told already: the server comes to it as we do
    return []


async def _ask_nobody(model: str, body: Body) -> Body:
    raise AssertionError("a check asks no model")


def _keys(pool: Pool) -> list[Finding]:
    """Find keys of upstreams that the environment does not have."""
    found = []
    for card in pool:
        try:
            if card.api_key:
                expand(card.api_key, where=f"api_key of model {card.name!r}")
        except CrossroadsError as error:
            found.append(Finding("error", f"models.{card.name}", str(error)))
    return found


def _certificates(pool: Pool) -> list[Finding]:
    """Find files of authorities that cannot be used, and those that nobody will look at."""
    found = []
    for card in pool:
        if card.ca_file is None or not str(card.endpoint).startswith("http"):
            continue
        place = f"models.{card.name}.ca_file"
        if not str(card.endpoint).startswith("https://"):
            message = f"{card.ca_file} has no effect: {card.endpoint} is not https"
            found.append(Finding("warning", place, message))
            continue
        try:
            tls_context(card.ca_file)
        except CrossroadsError as error:
            found.append(Finding("error", place, str(error)))
    return found


def advice(built: Built, config: ServeConfig) -> list[Finding]:
    """Find what works, and still is hardly meant.

    ``config`` is the one that ``built`` was made of, as somebody wrote it: workers share counts by
    a setting that is their own.
    """
    found = [Finding("warning", "policies", text) for text in built.policies.warnings]
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
    for card in built.pool:
        if str(card.endpoint).startswith("http://") and card.api_key and not _is_near(card):
            message = "its key travels unencrypted; use https"
            found.append(Finding("warning", f"models.{card.name}", message))
        found += _doubled(card)
    keys = _all_keys(config)
    return [
        *found,
        *_nobody(config),
        *(Finding("warning", "governance.keys_file", why) for why in built.governor.key_problems),
        *_allowed(keys, built),
        *_nowhere(keys, built),
        *_strangers(built, config),
        *_forgotten(keys, config),
        *_unshared(keys, config),
    ]


def _all_keys(config: ServeConfig) -> dict[str, KeySettings]:
    """Return the keys by where they are written."""
    governance = config.governance
    written = {f"governance.keys[{n}]": key for n, key in enumerate(governance.keys)}
    if governance.keys_file is not None:
        for key in KeyFile(governance.keys_file).read().keys:
            written[f"governance.keys_file: key {key.name!r}"] = key
    return written


def _libraries(built: Built) -> list[Finding]:
    """Find libraries that models need and this installation lacks."""
    found = []
    for name, upstream in built.services.upstreams.items():
        try:
            check_upstream(upstream)
        except MissingExtraError as error:
            found.append(Finding("error", f"models.{name}", str(error)))
        except CrossroadsError:
            continue  # a key or a certificate: told by ``_keys`` and by a probe
    return found


def _nobody(config: ServeConfig) -> list[Finding]:
    """Find a file of keys that is not there."""
    path = config.governance.keys_file
    if path is None or Path(path).exists():
        return []
    who = "its keys cannot" if config.api_key or config.governance.keys else "nobody can"
    message = f"{path}: no such file in {Path.cwd()}, so {who} get in; make one: crossroads "
    return [Finding("warning", "governance.keys_file", f"{message}keys create NAME --file {path}")]


def _allowed(keys: Mapping[str, KeySettings], built: Built) -> list[Finding]:
    """Find keys that may ask for what there is not."""
    known = built.policies.names
    return [
        Finding("warning", f"{place}.models", str(unknown_name("model or policy", name, known)))
        for place, key in keys.items()
        for name in key.models or ()
        if name not in known and name.partition(":")[0] not in known
    ]


def _nowhere(keys: Mapping[str, KeySettings], built: Built) -> list[Finding]:
    """Find keys whose data may be sent to no model: each promises other regions, or none."""
    promised = {card.name: frozenset(card.residency) for card in built.pool}
    told = "; ".join(
        f"{name} keeps it in {', '.join(sorted(regions))}"
        for name, regions in promised.items()
        if regions
    )
    return [
        Finding(
            "warning",
            f"{place}.residency",
            f"no model promises to keep data in {', '.join(key.residency)}, so every request is "
            f"refused ({told or 'no card has a residency'})",
        )
        for place, key in keys.items()
        if key.residency
        and not any(regions and regions <= set(key.residency) for regions in promised.values())
    ]


def _strangers(built: Built, config: ServeConfig) -> list[Finding]:
    """Find prices of models that there are not: most are misspelt, and the real one has none."""
    path, known = config.governance.prices_file, built.pool.names
    told = [unknown_name("model", name, known) for name in built.prices.listed if name not in known]
    return [Finding("warning", "governance.prices_file", f"{path}: {what}") for what in told]


def _doubled(card: ModelCard) -> list[Finding]:
    """Find an endpoint that names a path which is added to it."""
    path = urlsplit(str(card.endpoint)).path.rstrip("/")
    for added in _ADDED:
        if path.endswith(added):
            base = str(card.endpoint).partition(added)[0]
            message = f"{added} is added to it; give the base URL, {base}"
            return [Finding("warning", f"models.{card.name}.endpoint", message)]
    return []


def _forgotten(keys: Mapping[str, KeySettings], config: ServeConfig) -> list[Finding]:
    """Find budgets of a day or longer that a restart fills again."""
    if config.governance.store != "memory":
        return []
    teams = {f"governance.teams.{name}": team for name, team in config.governance.teams.items()}
    holders: dict[str, KeySettings | TeamSettings] = {**teams, **keys}
    found = []
    for place, holder in holders.items():
        for budget in holder.budgets:
            length = parse_period(budget.per)  # None: a month
            if length is None or length >= _DAY:
                message = (
                    f"{budget.usd:g} USD per {budget.per} can be spent anew after every restart; "
                    "keep the counts with governance.store: sqlite:limits.db, or redis://"
                )
                found.append(Finding("warning", f"{place}.budgets", message))
    return found


def _unshared(keys: Mapping[str, KeySettings], config: ServeConfig) -> list[Finding]:
    """Find what each of several workers keeps for itself."""
    if config.workers == 1:
        return []
    governance, own = config.governance, []
    holders: list[KeySettings | TeamSettings] = [*keys.values(), *governance.teams.values()]
    is_limited = governance.keys_file is not None or any(
        holder.budgets or holder.limits.model_dump(exclude_none=True) for holder in holders
    )
    if is_limited and governance.store == "memory" and "store" in governance.model_fields_set:
        message = "every worker counts for itself; use sqlite:PATH or redis://, or leave it out"
        own.append(("governance.store", message))
    if config.responses.store == "memory":
        message = (
            "every worker keeps its own: a previous_response_id is unknown to the others; share "
            "them with responses.store: redis://"
        )
        own.append(("responses.store", message))
    if config.cache is not None and config.cache.store == "memory":
        message = "every worker keeps its own answers; share them with cache.store: redis://"
        own.append(("cache.store", message))
    if config.idempotency is not None:
        message = (
            "every worker remembers its own Idempotency-Keys, and nothing shares them: another may "
            "answer a repeated request anew; serve with one worker where that matters"
        )
        own.append(("idempotency", message))
    return [Finding("warning", place, message) for place, message in own]


def _is_near(card: ModelCard) -> bool:
    return urlsplit(card.endpoint or "").hostname in ("127.0.0.1", "localhost", "::1")


async def _probe(config: ServeConfig, built: Built) -> list[Finding]:
    found = []
    if config.ledger is not None:
        try:
            await asyncio.to_thread(check_ledger, config.ledger)
            found.append(Finding("note", "ledger", "it is there, or can be made"))
        except CrossroadsError as error:
            found.append(Finding("error", "ledger", str(error)))
    for section in ("governance", "cache", "responses"):
        url = getattr(getattr(config, section), "store", "memory")
        if url.partition("://")[0] in SCHEMES:
            try:
                await ping_redis(url)
                found.append(Finding("note", f"{section}.store", "it answers"))
            except CrossroadsError as error:
                found.append(Finding("error", f"{section}.store", str(error)))
    told = {finding.place for finding in _certificates(built.pool) if finding.level == "error"}
    cards = [
        card
        for card in built.pool
        if str(card.endpoint).startswith("http") and f"models.{card.name}.ca_file" not in told
    ]
    problems = await asyncio.gather(*(_connect(card) for card in cards))
    for card, problem in zip(cards, problems, strict=True):
        place = f"models.{card.name}"
        if problem is not None:
            found.append(Finding("error", place, problem))
        else:
            host = urlsplit(card.endpoint or "").netloc.rpartition("@")[2]
            found.append(Finding("note", place, f"{host} takes connections"))
    return found


async def _connect(card: ModelCard) -> str | None:
    """Return why a model's server cannot be reached; None where it can."""
    parts = urlsplit(card.endpoint or "")
    port = parts.port or _PORTS[parts.scheme]
    try:
        tls = tls_context(card.ca_file) if parts.scheme == "https" else None
        async with asyncio.timeout(_PATIENCE_S):
            _, writer = await asyncio.open_connection(parts.hostname, port, ssl=tls)
    except InputError as error:
        return str(error)
    except (OSError, TimeoutError) as error:
        reason = str(error) or f"no connection within {_PATIENCE_S:g} s"
        return f"{parts.hostname}:{port} cannot be reached ({reason}); start it, or mend endpoint"
    writer.close()
    return None
