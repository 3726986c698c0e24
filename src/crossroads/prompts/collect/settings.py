"""How experts are asked, how fast, and for how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from crossroads.core.errors import UsageError
from crossroads.core.http.timeouts import Timeouts
from crossroads.prompts.pool import Pool

EVERY_MODEL = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectSettings:
    """How experts are asked.

    Attributes
    ----------
    system : system message, None for the expert's own default
    max_tokens : bound on each answer
    temperature : 0 for the most likely answer
    concurrency : calls in flight per model; latencies of a local model mean most at 1
    num_retries : further attempts after a failure that may pass
    backoff : seconds before the first further attempt, doubled each time
    longest_wait : seconds; a model that asks to wait longer is left to the next run
    timeouts : of each call to an HTTP endpoint
    requests_per_minute, tokens_per_minute : bounds by model name; ``*`` is for every other model
    max_cost : bound on what the table costs, earlier runs of it and judges included, in the pool's
        unit; None for no bound
    keep_responses : whether the table gets the answers' text
    """

    system: str | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    concurrency: int = 4
    num_retries: int = 2
    backoff: float = 0.5
    longest_wait: float = 120.0
    timeouts: Timeouts = field(default_factory=Timeouts)
    requests_per_minute: Mapping[str, int] = field(default_factory=dict)
    tokens_per_minute: Mapping[str, int] = field(default_factory=dict)
    max_cost: float | None = None
    keep_responses: bool = True

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise UsageError(f"concurrency: expected at least 1, got {self.concurrency}")
        if self.max_tokens < 1:
            raise UsageError(f"max tokens: expected at least 1, got {self.max_tokens}")
        if self.max_cost is not None and not self.max_cost > 0:
            raise UsageError(f"max cost: expected more than 0, got {self.max_cost}")
        for what in ("requests_per_minute", "tokens_per_minute"):
            for model, bound in getattr(self, what).items():
                if bound < 1:
                    words = what.replace("_", " ")
                    raise UsageError(f"{words} of {model!r}: expected at least 1, got {bound}")

    def check(self, pool: Pool) -> None:
        """Raise UsageError where the settings do not fit a pool."""
        for bounds in (self.requests_per_minute, self.tokens_per_minute):
            for model in bounds:
                if model != EVERY_MODEL:
                    pool[model]  # an unknown name raises
        if self.max_cost is not None and not pool.has_prices:
            raise UsageError(
                f"max cost: pool {pool.name!r} has no prices; add price_in, price_out or "
                "price_per_call to its models"
            )
