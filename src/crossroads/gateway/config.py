"""The server's configuration: one YAML file, checked before anything starts.

::

    router: runs/auto            # folder of a fitted router; without it only named models
    pool: pool.yaml              # where the models are reached; else the router's own cards
    rule: tradeoff:100           # decision rule in place of the router's own
    host: 127.0.0.1
    port: 8080
    api_key: ${CROSSROADS_API_KEY}
    limits: {body_bytes: 8388608}
    timeouts: {connect: 5, first_byte: 120, idle: 60, total: 600, drain: 30}   # seconds
    preferences:                 # policies decide for "auto" in place of a fitted router
      default: small-model
      policies:
        - {name: code, description: writing or mending programs, model: code-model}
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crossroads.core.errors import InputError, UsageError, unknown_name
from crossroads.gateway.app import DEFAULT_BODY_LIMIT
from crossroads.prompts.decide import parse_rule
from crossroads.prompts.experts.environment import expand
from crossroads.prompts.pool import describe


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Section):
    """What a client may send."""

    body_bytes: int = Field(default=DEFAULT_BODY_LIMIT, gt=0, description="largest request body")


class TimeoutSettings(_Section):
    """Seconds; see ``crossroads.prompts.experts.http.Timeouts`` for the first four."""

    connect: float = Field(default=5.0, gt=0)
    first_byte: float = Field(default=120.0, gt=0)
    idle: float = Field(default=60.0, gt=0)
    total: float = Field(default=600.0, gt=0)
    drain: float = Field(default=30.0, gt=0, description="for requests in flight at a stop")


class PreferenceSettings(_Section):
    """Policies in plain language; see ``crossroads.prompts.preferences``."""

    default: str = Field(min_length=1, description="model of what no policy fits")
    policies: list[dict[str, Any]] = Field(min_length=1, description="name, description, model")
    backend: str = Field(default="matcher", description="matcher, scorer or tuned")
    options: dict[str, Any] = Field(default_factory=dict, description="settings of the back end")


class ServeConfig(_Section):
    """Everything ``crossroads serve`` can be told."""

    router: str | None = Field(default=None, description="folder of a fitted router")
    pool: str | None = Field(default=None, description="pool.yaml, or a shipped pool's name")
    rule: str | None = Field(default=None, description="decision rule, such as tradeoff:100")
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8080, ge=0, le=65535, description="0 takes any free port")
    api_key: str | None = Field(default=None, description="usually ${CROSSROADS_API_KEY}")
    limits: Limits = Limits()
    timeouts: TimeoutSettings = TimeoutSettings()
    preferences: PreferenceSettings | None = None

    @property
    def is_exposed(self) -> bool:
        """Whether other machines can reach the server."""
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True  # a name: what it resolves to may change


_SECTIONS: dict[str, type[_Section]] = {
    "limits": Limits,
    "timeouts": TimeoutSettings,
    "preferences": PreferenceSettings,
}


def read_config(path: str | Path | None, options: dict[str, Any] | None = None) -> ServeConfig:
    """Read a YAML file, if one is given; ``options`` that are not None go before its values.

    Raises InputError naming file and field, UsageError for an unknown rule and for a server that
    other machines can reach without a key.
    """
    given = {name: value for name, value in (options or {}).items() if value is not None}
    where = "options" if path is None else f"config {path}"
    values = {**({} if path is None else _read_yaml(Path(path))), **given}
    try:
        config = ServeConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {_misspelt(error) or describe(error)}") from error
    if config.rule is not None:
        parse_rule(config.rule)
    if config.is_exposed and not config.api_key:
        raise UsageError(
            f"host {config.host!r} is reachable from other machines; set an API key with --api-key "
            "or CROSSROADS_API_KEY, or serve on 127.0.0.1"
        )
    return config


def _misspelt(error: ValidationError) -> str | None:
    """Return the first unknown field with its nearest spelling; None where all are known.

    It goes before a missing field, which is often the same one spelt wrongly.
    """
    for found in error.errors(include_url=False, include_context=False):
        if found["type"] == "extra_forbidden":
            *sections, name = map(str, found["loc"])
            section = _SECTIONS[sections[0]] if sections else ServeConfig
            place = f"{sections[0]}: " if sections else ""
            return f"{place}{unknown_name('field', name, section.model_fields)}"
    return None


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"config {str(path)!r}: no such file")
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise InputError(f"config {path}: not valid YAML: {problem}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"config {path}: expected fields such as 'port: 8080', got {values!r:.40}")
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
        return [_expanded(item, where=where) for item in value]
    return value
