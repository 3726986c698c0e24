"""The section ``governance``: who may ask, how much, and for how much money."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from crossroads.gateway.governance.periods import parse_period
from crossroads.gateway.settings import Matching, Section

_MOST_UNITS = 10**10  # a day of them in milliseconds still fits 64 bits
_MOST_USD = 9e6  # in billionths this is the largest whole number that a Redis script counts exactly
_LEAST_SECRET = 16  # characters of a secret that a person chose

Name = Annotated[
    str,
    Matching(
        "[A-Za-z0-9][A-Za-z0-9._@-]{0,63}",
        "1 to 64 of the letters a to z, digits and . _ @ -, a letter or digit first",
    ),
]
Hash = Annotated[
    str,
    Matching("sha256:[0-9a-f]{64}", "sha256: and 64 digits 0-9 a-f, as 'crossroads keys' writes"),
]
StoreUrl = Annotated[
    str,
    Matching(
        "memory|sqlite:.+|rediss?://.+|unix://.+",
        "memory, sqlite:PATH, redis://HOST or unix://PATH",
    ),
]
Units = Annotated[int, Field(ge=1, le=_MOST_UNITS)]


class LimitSettings(Section):
    """Limits of a key or a team; each is a token bucket as large as the limit. None: no limit."""

    requests_per_second: Units | None = None
    requests_per_minute: Units | None = None
    requests_per_day: Units | None = None
    tokens_per_minute: Units | None = Field(default=None, description="sent and received")
    tokens_per_day: Units | None = Field(default=None, description="sent and received")
    parallel: Units | None = Field(default=None, description="requests at a time")


class BudgetSettings(Section):
    """Money for a period."""

    usd: float = Field(gt=0, le=_MOST_USD, allow_inf_nan=False, description="hard cap")
    per: str = Field(default="month", description="hour, day, week, month (UTC), or days as 30d")
    alert_at: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.8,), description="shares of the budget at which to say so"
    )
    pace: bool = Field(
        default=False, description="spread the spend over the period by a price on cost"
    )
    traffic: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] | None = Field(
        default=None, description="24 weights, one an hour of the UTC day; even where left out"
    )
    price: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="first price, quality per USD"
    )

    @field_validator("per")
    @classmethod
    def _known_period(cls, value: str) -> str:
        parse_period(value)
        return value

    @field_validator("traffic")
    @classmethod
    def _whole_day(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and (len(value) != 24 or sum(value) <= 0):
            raise ValueError("expected 24 weights, one an hour, not all of them 0")
        return value


class TeamSettings(Section):
    """What all keys of a team share."""

    limits: LimitSettings = LimitSettings()
    budgets: tuple[BudgetSettings, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> TeamSettings:
        _refuse_repeats([budget.per for budget in self.budgets], "budget per")
        return self


class KeySettings(Section):
    """A virtual key. ``hash`` is what ``crossroads keys create`` writes; ``secret`` is hashed."""

    name: Name
    hash: Hash | None = None
    secret: str | None = Field(default=None, repr=False, description="usually ${NAME}")
    team: Name | None = None
    models: tuple[str, ...] | None = Field(
        default=None, description="models and policies it may ask for; all where left out"
    )
    tags: tuple[str, ...] = ()
    residency: tuple[str, ...] = Field(default=(), description="regions its data may be sent to")
    created: datetime | None = None
    expires: datetime | None = Field(default=None, description="UTC where no zone is given")
    disabled: bool = False
    limits: LimitSettings = LimitSettings()
    budgets: tuple[BudgetSettings, ...] = ()

    @field_validator("created", "expires")
    @classmethod
    def _in_utc(cls, value: datetime | None) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(rf"[!-~]{{{_LEAST_SECRET},256}}", value):
            raise ValueError(f"expected {_LEAST_SECRET} to 256 printable characters, no spaces")
        return value

    @model_validator(mode="after")
    def _one_secret(self) -> KeySettings:
        if (self.hash is None) == (self.secret is None):
            raise ValueError("expected either 'hash' (crossroads keys create) or 'secret'")
        _refuse_repeats([budget.per for budget in self.budgets], "budget per")
        return self


class GovernanceSettings(Section):
    """Keys, limits, budgets and where their counts are kept."""

    keys: tuple[KeySettings, ...] = ()
    keys_file: str | None = Field(default=None, description="YAML written by crossroads keys")
    teams: dict[Name, TeamSettings] = Field(default_factory=dict)
    store: StoreUrl = Field(
        default="memory",
        description="memory (one process), sqlite:PATH (one host), redis://host:port; left out: "
        "memory, with several workers a temporary file that they share until they end",
    )
    on_store_failure: Literal["open", "closed"] = Field(
        default="open", description="serve on with what was left, or answer 503"
    )
    lease_ttl_s: float = Field(
        default=10.0, ge=1.0, le=3600.0, description="after which a dead worker's lease returns"
    )
    block_share: float = Field(
        default=1 / 64, gt=0, le=0.5, description="share of a limit that a worker takes at a time"
    )
    output_tokens: int = Field(
        default=256, ge=0, le=10**6, description="counted for an answer without a bound at first"
    )
    prices_file: str | None = Field(
        default=None, description="YAML {model: {in, out, per_call}} that overrides the pool"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> GovernanceSettings:
        _refuse_repeats([key.name for key in self.keys], "key")
        missing = {key.team for key in self.keys if key.team} - set(self.teams)
        if missing:
            raise ValueError(f"team {sorted(missing)[0]!r} of a key is not under 'teams'; add it")
        return self


def _refuse_repeats(names: list[str], what: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{what} {repeated[0]!r} is given twice")
