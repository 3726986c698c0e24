"""The server's configuration: one YAML file, checked before anything starts.

::

    pool: pool.yaml              # where the models are reached; else the router's own cards
    router: runs/auto            # folder of a fitted router: the policy "auto"
    rule: tradeoff:100           # decision rule in place of the router's own
    host: 127.0.0.1
    port: 8080
    workers: 1
    api_key: ${CROSSROADS_API_KEY}       # one key for everybody; or virtual keys, see governance
    policies: {cheap: {kind: split, weights: {small: 9, large: 1}}}
    fallbacks: {large: [small]}
    failures: {retries: 1}               # retries, breakers, hedges, continuation of streams
    governance: {keys_file: keys.yaml}   # keys, limits, budgets
    ledger: {url: "sqlite:crossroads-ledger.db"}   # null keeps none
    cache: {exact: true}
    telemetry: {logs: {level: info}}
    admin: {port: 8081}                  # admin API and dashboard; null for none
    timeouts: {connect: 5, first_byte: 120, idle: 60, total: 600, drain: 30, ping: 15}  # seconds

Every section is described by the settings of its room (``crossroads.gateway.<room>.settings``).
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError

from crossroads.core.errors import InputError, UsageError
from crossroads.core.problems import problems_of, yaml_problem
from crossroads.gateway.admin.settings import AdminSettings
from crossroads.gateway.caches.settings import CacheSettings
from crossroads.gateway.dialects.settings import ResponsesSettings
from crossroads.gateway.engine.settings import EngineSettings, IdempotencySettings
from crossroads.gateway.evaluation.settings import EvaluationSettings
from crossroads.gateway.governance.settings import GovernanceSettings
from crossroads.gateway.ledger.settings import LedgerSettings
from crossroads.gateway.policies.settings import (
    LearnedSettings,
    Objective,
    PoliciesSettings,
    PolicySettings,
    PreferencesSettings,
)
from crossroads.gateway.problems import ConfigError
from crossroads.gateway.redaction import is_plain
from crossroads.gateway.serving.settings import FrontSettings
from crossroads.gateway.settings import Section
from crossroads.gateway.telemetry.settings import TelemetrySettings
from crossroads.gateway.upstreams.settings import UpstreamSettings
from crossroads.prompts.decide import parse_rule
from crossroads.prompts.experts.environment import expand
from crossroads.prompts.pool import checked_name

AUTO = "auto"
DEFAULT_BODY_LIMIT = 8 << 20  # bytes
PolicyName = Annotated[str, Field(min_length=1), AfterValidator(checked_name)]


class Limits(Section):
    """What a client may send."""

    body_bytes: int = Field(default=DEFAULT_BODY_LIMIT, gt=0, description="largest request body")


class TimeoutSettings(Section):
    """Seconds; see ``crossroads.core.http.timeouts.Timeouts`` for the first four."""

    connect: float = Field(default=5.0, gt=0)
    first_byte: float = Field(default=120.0, gt=0)
    idle: float = Field(default=60.0, gt=0)
    total: float = Field(default=600.0, gt=0)
    drain: float = Field(default=30.0, gt=0, description="for requests in flight at a stop")
    ping: float | None = Field(
        default=15.0,
        gt=0,
        description="of silence within a stream, after which its client gets a sign of life; null "
        "for none",
    )


class PreferenceSettings(Section):
    """Policies in plain language; see ``crossroads.prompts.preferences``."""

    default: str = Field(min_length=1, description="model of what no policy fits")
    policies: list[dict[str, Any]] = Field(min_length=1, description="name, description, model")
    backend: str = Field(default="matcher", description="matcher, scorer or tuned")
    options: dict[str, Any] = Field(default_factory=dict, description="settings of the back end")


class ServeConfig(Section):
    """Everything ``crossroads serve`` can be told."""

    router: str | None = Field(default=None, description="folder of a fitted router")
    pool: str | None = Field(default=None, description="pool.yaml, or a shipped pool's name")
    rule: str | None = Field(default=None, description="decision rule, such as tradeoff:100")
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8080, ge=0, le=65535, description="0 takes any free port")
    workers: int = Field(default=1, ge=1, le=256, description="processes that share the port")
    api_key: str | None = Field(default=None, description="usually ${CROSSROADS_API_KEY}")
    limits: Limits = Limits()
    http: Literal["standard", "fast"] = Field(
        default="fast", description="HTTP/1.1 implementation: our own, or uvicorn's (standard)"
    )
    front: FrontSettings = FrontSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    preferences: PreferenceSettings | None = None
    policies: dict[PolicyName, PolicySettings] = Field(default_factory=dict)
    fallbacks: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    upstreams: UpstreamSettings = UpstreamSettings()
    failures: EngineSettings = EngineSettings()
    idempotency: IdempotencySettings | None = IdempotencySettings()
    governance: GovernanceSettings = GovernanceSettings()
    ledger: LedgerSettings | None = LedgerSettings()
    cache: CacheSettings | None = None
    responses: ResponsesSettings = ResponsesSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    admin: AdminSettings | None = AdminSettings()
    baseline: str | None = Field(
        default=None,
        description="model that savings are counted against; the best by estimate",
    )
    watch_s: float | None = Field(
        default=1.0, gt=0, description="between two looks whether a file changed; null: never"
    )

    @property
    def is_exposed(self) -> bool:
        """Whether other machines can reach the server."""
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True  # a name: what it resolves to may change

    @property
    def has_keys(self) -> bool:
        """Whether a client must show a key."""
        governance = self.governance
        return bool(self.api_key or governance.keys or governance.keys_file)

    @property
    def all_policies(self) -> PoliciesSettings:
        """The policies, with those that ``router`` and ``preferences`` stand for."""
        policies: dict[str, Any] = dict(self.policies)
        if self.router is not None:
            name = "router" if self.preferences is not None else AUTO
            policies[name] = LearnedSettings(
                router=self.router,
                objective=None if self.rule is None else Objective(rule=self.rule),
            )
        if self.preferences is not None:
            wanted = self.preferences
            policies[AUTO] = PreferencesSettings(
                otherwise=wanted.default,
                policies=wanted.policies,
                backend=wanted.backend,
                options=wanted.options,
            )
        return PoliciesSettings(policies=policies, fallbacks=self.fallbacks)


def read_config(
    path: str | Path | None,
    options: dict[str, Any] | None = None,
    *,
    shared: str | Path | None = None,
) -> ServeConfig:
    """Read a YAML file, if one is given; ``options`` that are not None go before its values.

    ``shared`` is a folder of the workers of one gateway: limits are counted there where nothing
    says otherwise, since in the memory of each they would hold for each.

    Raises ConfigError with every field that is wrong, InputError for a file that cannot be read,
    UsageError for options: an unknown rule, an address that other machines can reach without a key.
    """
    given = {name: value for name, value in (options or {}).items() if value is not None}
    where = "options" if path is None else f"config {path}"
    values = {**({} if path is None else _read_yaml(Path(path))), **given}
    try:
        config = ServeConfig.model_validate(values)
    except ValidationError as error:
        remedy = "" if path is None else f"; crossroads check-config {path} names them"
        problems = problems_of(error, ServeConfig, may_tell=is_plain)
        raise ConfigError(where, problems, remedy=remedy) from None
    if config.rule is not None:
        _check_rule(config.rule, file=None if "rule" in given else where)
    _check_names(config, where)
    _check_ports(config, where)
    if config.is_exposed and not config.has_keys:
        problem = (
            f"host {config.host!r} is reachable from other machines; set an API key with --api-key "
            "or CROSSROADS_API_KEY, or serve on 127.0.0.1"
        )
        if path is None or "host" in given:
            raise UsageError(problem)
        raise InputError(f"{where}: {problem}")
    if shared is not None and "store" not in config.governance.model_fields_set:
        governance = {**config.governance.__dict__, "store": f"sqlite:{Path(shared) / 'limits.db'}"}
        together = config.governance.model_construct(**governance)
        config = config.model_copy(update={"governance": together})
    return config


def _check_rule(rule: str, *, file: str | None) -> None:
    """Refuse an unknown rule: a wrong option, or a wrong file where one says it."""
    try:
        parse_rule(rule)
    except UsageError as error:
        if file is None:
            raise
        raise InputError(f"{file}: rule: {error}") from error


def _check_names(config: ServeConfig, where: str) -> None:
    """Refuse two meanings of one policy's name."""
    short = [name for name in ("router", "preferences") if getattr(config, name) is not None]
    for name in (AUTO, *(["router"] if len(short) == 2 else [])):
        if short and name in config.policies:
            raise InputError(
                f"{where}: policies.{name}: {short[0]!r} already stands for this policy; "
                "rename one of them"
            )


def _check_ports(config: ServeConfig, where: str) -> None:
    """Refuse one port for two servers; a port of the dashboard that nobody asked for gives way."""
    admin = config.admin
    if admin is None or "port" not in admin.model_fields_set or admin.port != config.port:
        return
    hosts = {"127.0.0.1" if host == "localhost" else host for host in (config.host, admin.host)}
    if config.port != 0 and (len(hosts) == 1 or hosts & {"0.0.0.0", "::"}):
        raise InputError(
            f"{where}: admin.port: {admin.port} is the gateway's own 'port', too; choose another"
        )


class _Loader(yaml.SafeLoader):
    """Reads YAML in which every field is given once."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise InputError(
                    f"field {name!r} is given twice, in lines {lines[name]} and {line}; remove one"
                )
            lines[name] = line
        return node


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        if path.is_dir():
            raise InputError(f"config {str(path)!r} is a folder; give the YAML file in it")
        raise InputError(f"config {str(path)!r}: no such file in {Path.cwd()}; correct the path")
    try:
        values = yaml.load(path.read_text("utf-8"), _Loader)
    except InputError as error:
        raise InputError(f"config {path}: {error}") from None
    except OSError as error:
        raise InputError(f"config {path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {path}: not valid YAML: {yaml_problem(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise InputError(f"config {path}: expected fields such as 'port: 8080', got {kind}")
    if "models" in values:
        raise InputError(
            f"config {path}: is a pool of models; name it in a configuration: 'pool: {path}'"
        )
    return {
        str(name): _expanded(value, where=f"config {path}: {name}")
        for name, value in values.items()
    }


def _expanded(value: Any, *, where: str) -> Any:
    """Resolve ``${NAME}`` in every text of a YAML value."""
    if isinstance(value, str):
        return expand(value, where=where)
    if isinstance(value, dict):
        return {key: _expanded(item, where=f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, where=f"{where}[{n}]") for n, item in enumerate(value)]
    return value
