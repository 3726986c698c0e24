"""The section ``cache`` of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from crossroads.gateway.settings import Matching, Section

_STORES = ("redis", "rediss", "unix")

Namespace = Annotated[
    str, Matching(r"[\w.:-]{1,64}", "1 to 64 letters, digits and . : - _, without spaces")
]


class ExactSettings(Section):
    """Answers to requests that are the same in every field that matters."""

    ttl_s: float = Field(default=3600.0, gt=0, le=31_536_000, description="seconds kept")
    max_bytes: int = Field(
        default=64 << 20, ge=1 << 16, description="of answers in memory; with Redis, Redis decides"
    )


class SemanticSettings(Section):
    """Answers to requests that differ in the wording of their last message only."""

    threshold: float = Field(
        default=0.97, ge=0.5, le=1.0, description="least cosine similarity of the two texts"
    )
    ttl_s: float = Field(default=3600.0, gt=0, le=31_536_000, description="seconds kept")
    max_entries: int = Field(default=10_000, ge=1, le=200_000, description="about 1 KiB each")
    max_bytes: int = Field(default=64 << 20, ge=1 << 16, description="of answers in memory")
    max_characters: int = Field(
        default=1000, ge=1, le=32_768, description="longer texts are never compared"
    )
    encoder: Literal["static", "minilm"] = "static"


class CacheSettings(Section):
    """Caches are off where neither ``exact`` nor ``semantic`` is given."""

    exact: ExactSettings | None = None
    semantic: SemanticSettings | None = None
    scope: Literal["key", "team", "all"] = Field(
        default="key", description="who shares answers: one key, one team, everybody"
    )
    store: str = Field(default="memory", description="memory, or redis://host:port/db")
    headers: tuple[str, ...] = Field(
        default=(), description="of requests that policies go by, besides x-crossroads-..."
    )
    namespace: Namespace = Field(
        default="crossroads",
        description="of keys in Redis; gateways with different namespaces share nothing",
    )
    sampling: Literal["none", "unset", "any"] = Field(
        default="unset",
        description="temperatures kept: 0 only; 0 and requests that do not say; any",
    )
    tool_calls: bool = Field(default=False, description="keep answers that call tools")
    max_answer_bytes: int = Field(default=1 << 20, ge=1024, description="larger ones are not kept")
    timeout_ms: float = Field(
        default=100.0, gt=0, le=10_000, description="wait for Redis; then it is a miss"
    )
    retry_s: float = Field(
        default=5.0, gt=0, le=3600, description="seconds Redis is left alone after a failure"
    )

    @field_validator("exact", mode="before")
    @classmethod
    def _exact_defaults(cls, value: object) -> object:
        return {} if value is True else None if value is False else value

    @field_validator("semantic", mode="before")
    @classmethod
    def _semantic_defaults(cls, value: object) -> object:
        return {} if value is True else None if value is False else value

    @field_validator("store")
    @classmethod
    def _known_store(cls, value: str) -> str:
        if value != "memory" and urlsplit(value).scheme not in _STORES:
            raise ValueError("expected memory, redis://host:port, rediss://... or unix://path")
        return value

    @model_validator(mode="after")
    def _some_cache(self) -> CacheSettings:
        if self.model_fields_set and self.exact is None and self.semantic is None:
            raise ValueError("names no cache; add 'exact: true', 'semantic: true' or both")
        return self
