"""What ``policies:`` and ``fallbacks:`` of the configuration may say."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from crossroads.gateway.settings import Section
from crossroads.prompts.decide import Argmax, Budget, MaxCost, MinQuality, Tradeoff

Name = Annotated[str, Field(min_length=1)]
Names = tuple[Name, ...]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Common(Section):
    """What every policy can say."""

    default: bool = Field(default=False, description="serves 'auto' where no policy has that name")
    fallbacks: Names = Field(default=(), description="models asked when the chosen one fails")
    hedge_after_ms: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="then a second model is asked too"
    )


class Objective(Section):
    """What a learned policy aims at; exactly one field."""

    max_quality_under_usd: Number | None = Field(default=None, description="USD per call")
    min_cost_above_quality: Number | None = Field(default=None, description="estimate in [0, 1]")
    tradeoff: Number | None = Field(default=None, description="quality per USD")
    budget_usd: Number | None = Field(default=None, description="USD per call on average")
    rule: str | None = Field(default=None, description="decision rule, such as tradeoff:100")

    @model_validator(mode="after")
    def _one(self) -> Objective:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            names = ", ".join(type(self).model_fields)
            raise ValueError(f"expected exactly one of {names}, got {', '.join(given) or 'none'}")
        return self

    def text(self) -> str:
        """Return the decision rule, as ``parse_rule`` reads it."""
        if self.rule is not None:
            return self.rule
        if self.max_quality_under_usd is not None:
            return str(MaxCost(self.max_quality_under_usd))
        if self.min_cost_above_quality is not None:
            return str(MinQuality(self.min_cost_above_quality))
        if self.tradeoff is not None:
            return str(Tradeoff(self.tradeoff)) if self.tradeoff else str(Argmax())
        assert self.budget_usd is not None
        return str(Budget(self.budget_usd))


class Exploration(Section):
    """Chance, within a floor of estimated quality; ``epsilon`` or ``thompson``."""

    epsilon: Share | None = Field(default=None, description="share of calls chosen uniformly")
    thompson: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="standard deviation of the estimates"
    )
    floor: float | None = Field(default=None, ge=0, le=1, description="least estimated quality")
    margin: float | None = Field(
        default=None, ge=0, le=1, description="greatest distance below the best estimate"
    )

    @model_validator(mode="after")
    def _one(self) -> Exploration:
        if (self.epsilon is None) == (self.thompson is None):
            raise ValueError("expected exactly one of epsilon, thompson")
        if self.floor is None and self.margin is None:
            raise ValueError("expected floor or margin: exploring needs a least quality")
        return self


class DriftSettings(Section):
    """Alarm when prompts stop looking like those before."""

    window: int = Field(default=200, ge=20, le=100_000, description="prompts of one test")
    false_alarms: float = Field(
        default=0.001, gt=0, le=0.1, description="share of windows without drift that alarm"
    )
    reference: int = Field(
        default=512, ge=100, le=8192, description="first prompts kept to compare with, if needed"
    )


class LearnedSettings(Common):
    """A fitted router decides."""

    kind: Literal["learned"] = "learned"
    router: Name = Field(description="folder of a fitted router")
    objective: Objective | None = Field(default=None, description="in place of the router's rule")
    models: Names = Field(default=(), description="to choose among; empty: all of the router")
    fallback: Name | None = Field(
        default=None, description="model or policy that decides when the router cannot"
    )
    budget_us: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="microseconds a decision may take"
    )
    explore: Exploration | None = None
    drift: DriftSettings | None = None
    num_fallbacks: int = Field(
        default=2, ge=0, le=16, description="next best models, where fallbacks names none"
    )
    keep_features: bool = Field(default=False, description="give the ledger the embedding")
    cache: int = Field(default=4096, ge=0, le=1_000_000, description="prompts remembered")
    max_batch: int = Field(default=16, ge=1, le=256, description="prompts decided at once")
    inline_chars: int = Field(
        default=4000, ge=0, le=32_768, description="longer prompts are decided in a thread"
    )
    seed: int = Field(default=0, ge=0, lt=1 << 63)


class PreferencesSettings(Common):
    """Policies in plain language; see ``crossroads.prompts.preferences``."""

    kind: Literal["preferences"] = "preferences"
    otherwise: Name = Field(description="model of what no policy fits")
    policies: list[dict[str, Any]] = Field(min_length=1, description="name, description, model")
    backend: str = Field(default="matcher", description="matcher, scorer or tuned")
    options: dict[str, Any] = Field(default_factory=dict, description="settings of the back end")


Texts = tuple[Name, ...]


class Conditions(Section):
    """What a request must be like: all that are given must hold."""

    headers: dict[str, str] = Field(default_factory=dict, description="name to exact value")
    metadata: dict[str, str] = Field(default_factory=dict, description="field to exact value")
    tags: Texts = Field(default=(), description="all of these")
    session: bool | None = Field(default=None, description="whether the request has one")
    keys: Texts = Field(default=(), description="key ids, any of these")
    teams: Texts = Field(default=(), description="any of these")
    dialects: Texts = Field(default=(), description="chat, messages, ...: any of these")
    min_tokens: int | None = Field(default=None, ge=0, description="estimated input tokens")
    max_tokens: int | None = Field(default=None, ge=0, description="estimated input tokens")
    tools: bool | None = Field(default=None, description="whether the request offers tools")
    inputs: tuple[Literal["image", "audio", "file"], ...] = Field(
        default=(), description="any of these is among the messages"
    )
    languages: Texts = Field(default=(), description="ISO 639-1 of the last user message")
    regex: str | None = Field(default=None, description="found in the last user message")
    stream: bool | None = None

    @model_validator(mode="after")
    def _some(self) -> Conditions:
        if not self.model_fields_set:
            raise ValueError("expected at least one condition; use 'otherwise' for the rest")
        return self


class RuleSettings(Section):
    """One rule: where it holds, its target answers."""

    name: str = ""
    when: Conditions
    use: Name = Field(description="model or policy")


class RulesSettings(Common):
    """The first rule that holds and whose target may answer decides."""

    kind: Literal["rules"] = "rules"
    rules: tuple[RuleSettings, ...] = Field(default=(), description="none: always ``otherwise``")
    otherwise: Name = Field(description="model or policy where no rule holds")


class SplitSettings(Common):
    """Weighted split."""

    kind: Literal["split"] = "split"
    weights: dict[str, Number] = Field(min_length=1, description="model or policy to weight")
    by: Literal["session", "request"] = Field(
        default="session", description="what keeps its side; without a session the request"
    )
    seed: int = Field(default=0, ge=0, lt=1 << 63)

    @model_validator(mode="after")
    def _positive(self) -> SplitSettings:
        if sum(self.weights.values()) <= 0:
            raise ValueError("weights: expected a sum > 0, got 0")
        return self


class StickySettings(Common):
    """A session stays with its model for a time."""

    kind: Literal["sticky"] = "sticky"
    policy: Name = Field(description="decides at the start of a session")
    ttl_s: float = Field(default=3600.0, gt=0, le=86_400 * 30, description="seconds since last use")
    sessions: int = Field(default=10_000, ge=1, le=10_000_000, description="remembered at most")


class CheckSettings(Section):
    """What verifies an answer; the fields depend on ``kind``."""

    kind: Literal["sdm", "judge", "rules", "logprobs"]
    model: Name | None = Field(default=None, description="judge: who is asked")
    question: str | None = Field(default=None, description="judge: in place of the usual one")
    regex: str | None = Field(default=None, description="rules: must be found in the answer")
    json_schema: dict[str, Any] | None = Field(default=None, description="rules: must be valid")
    min_chars: int | None = Field(default=None, ge=1, description="rules: least length")
    refusals: bool = Field(default=False, description="rules: refuse answers that decline")
    least: float | None = Field(
        default=None, le=0, allow_inf_nan=False, description="logprobs: least mean of a token"
    )

    @model_validator(mode="after")
    def _complete(self) -> CheckSettings:
        if self.kind == "judge" and self.model is None:
            raise ValueError("judge: expected 'model'")
        if self.kind == "logprobs" and self.least is None:
            raise ValueError("logprobs: expected 'least', a number <= 0 such as -0.5")
        named = (self.regex, self.json_schema, self.min_chars, self.refusals or None)
        if self.kind == "rules" and all(value is None for value in named):
            raise ValueError("rules: expected one of regex, json_schema, min_chars, refusals")
        return self


class CascadeSettings(Common):
    """Cheap to dear: the next step answers where the check refuses."""

    kind: Literal["cascade"] = "cascade"
    steps: Names = Field(min_length=2, description="models; the first may be a policy")
    check: CheckSettings


class CanarySettings(Common):
    """A share of the traffic goes to a second policy."""

    kind: Literal["canary"] = "canary"
    base: Name = Field(description="model or policy")
    candidate: Name = Field(description="model or policy")
    share: Share
    by: Literal["session", "request"] = "session"
    seed: int = Field(default=0, ge=0, lt=1 << 63)


class ShadowSettings(Common):
    """A second policy decides too; its choice is noted, nobody is asked twice."""

    kind: Literal["shadow"] = "shadow"
    base: Name = Field(description="model or policy that answers")
    candidate: Name = Field(description="policy that is watched")


PolicySettings = Annotated[
    LearnedSettings
    | PreferencesSettings
    | RulesSettings
    | SplitSettings
    | StickySettings
    | CascadeSettings
    | CanarySettings
    | ShadowSettings,
    Field(discriminator="kind"),
]


class PoliciesSettings(Section):
    """Everything that chooses a model."""

    policies: dict[Name, PolicySettings] = Field(default_factory=dict)
    fallbacks: dict[Name, Names] = Field(
        default_factory=dict, description="model to the models asked when it fails"
    )
