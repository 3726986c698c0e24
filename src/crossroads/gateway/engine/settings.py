"""Settings of retries, fallbacks, breakers, hedges, continuation and idempotency."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from crossroads.gateway.settings import Section
from crossroads.gateway.vocabulary import NEVER_PASSED

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")


class BreakerSettings(Section):
    """When a model counts as broken, and when it is tried again."""

    window_s: float = Field(default=30.0, gt=0, description="over which failures are counted")
    failure_share: float = Field(default=0.5, gt=0, le=1, description="that opens the breaker")
    least_calls: int = Field(default=10, ge=1, description="in the window before the share counts")
    consecutive_failures: int = Field(default=5, ge=1, description="that open it by themselves")
    open_s: float = Field(default=5.0, gt=0, description="before the first probe")
    open_growth: float = Field(
        default=2.0, ge=1, le=10, description="of that time with each failed probe"
    )
    open_max_s: float = Field(default=60.0, gt=0, description="longest time between probes")
    jitter: float = Field(default=0.2, ge=0, lt=1, description="share by which that time varies")
    probes: int = Field(default=2, ge=1, description="that must succeed to close it again")

    @model_validator(mode="after")
    def _ordered(self) -> BreakerSettings:
        if self.open_max_s < self.open_s:
            raise ValueError(f"open_max_s must be at least open_s ({self.open_s:g})")
        return self


class HedgeSettings(Section):
    """A second model asked beside a slow first one. Off unless ``after_s`` or a policy says so."""

    after_s: float | None = Field(default=None, gt=0, description="without a first event or answer")
    max_share: float = Field(default=0.05, ge=0, le=1, description="of extra calls at most")
    burst: int = Field(default=5, ge=1, description="hedges that may be saved up")


class ContinuationSettings(Section):
    """What becomes of a stream that breaks after it began."""

    enabled: bool = Field(default=True, description="false: it ends with an error event")
    fields: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="by model, added to a continued request (vLLM: continue_final_message: true, "
        "add_generation_prompt: false)",
    )


class EngineSettings(Section):
    """How hard an answer is tried for."""

    retries: int = Field(default=1, ge=0, le=20, description="of one model, after its first try")
    backoff_s: float = Field(default=0.1, gt=0, description="upper end of the first random wait")
    backoff_max_s: float = Field(default=2.0, gt=0, description="upper end of any random wait")
    max_retry_after_s: float = Field(
        default=2.0, ge=0, description="longest Retry-After that is waited for; else fall back"
    )
    max_attempts: int = Field(default=6, ge=1, le=100, description="of one call, over all models")
    deadline_s: float = Field(default=600.0, gt=0, description="for the whole call")
    larger_context: bool = Field(
        default=False, description="fall back to models of larger context on overflow"
    )
    when_all_open: Literal["try", "refuse"] = Field(
        default="try", description="what to do when every model's breaker is open"
    )
    give_refused: bool = Field(
        default=True, description="give a cascade's refused answer if nobody else can answer"
    )
    pass_headers: tuple[str, ...] = Field(
        default=(
            *("traceparent", "tracestate", "idempotency-key", "x-request-id"),
            *("openai-organization", "openai-project", "anthropic-version", "anthropic-beta"),
        ),
        description="of the client's request, sent upstream; never keys. x-request-id is ours",
    )
    breaker: BreakerSettings = BreakerSettings()
    hedge: HedgeSettings = HedgeSettings()
    continuation: ContinuationSettings = ContinuationSettings()

    @field_validator("pass_headers")
    @classmethod
    def _harmless(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        lower = tuple(name.strip().lower() for name in names)
        refused = sorted(NEVER_PASSED.intersection(lower))
        if refused:
            raise ValueError(f"{', '.join(refused)} must never be passed on; remove it")
        for name in lower:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a header; write it like x-my-header")
        return lower


class IdempotencySettings(Section):
    """How long answers are kept for a repeated ``Idempotency-Key``."""

    keep_s: float = Field(default=3600.0, gt=0, description="after the answer was given")
    wait_s: float = Field(default=600.0, gt=0, description="for a first request still running")
    max_entries: int = Field(default=10_000, ge=1, description="answers kept")
    max_mib: float = Field(default=64.0, gt=0, description="MiB of all answers kept")
    max_answer_mib: float = Field(default=4.0, gt=0, description="MiB of one answer; else not kept")
