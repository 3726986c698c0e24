"""A pool: the language models (experts) a prompt can be sent to, and what each of them costs.

``pool.yaml``::

    name: my-pool
    note: list prices of October 2026
    cost_unit: USD              # what the prices count; leave out for dollars
    models:
      - name: small-model
        description: fast, good at short factual questions
        price_in: 0.10          # USD per million input tokens
        price_out: 0.40         # USD per million output tokens
        price_per_call: 0.0     # USD added to every call
        context: 8192           # tokens
        requests_per_minute: 60 # bounds that `collect` keeps; tokens_per_minute likewise
        tags: [instruct]
        endpoint: https://host/v1
        api_key: ${MY_KEY}      # read from the environment when the pool is used, never stored

The gateway knows further fields of a card: ``api``, ``speaks``, ``inputs``, ``tools``,
``residency``, ``max_output``, ``max_parallel``, ``prefill``, ``stream_usage``, ``headers``,
``proxy``, ``ca_file`` and ``timeouts``; see ``ModelCard``. The last four hold for ``collect``, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from crossroads.core.errors import InputError, unknown_name
from crossroads.core.problems import on_one_line, problems_of, yaml_problem

FloatArray = npt.NDArray[np.floating[Any]]

_PLAIN = frozenset(  # fields of a card whose values errors may quote
    {
        *("price_in", "price_out", "price_per_call", "parameters", "context", "max_output"),
        *("requests_per_minute", "tokens_per_minute", "max_parallel", "timeouts"),
        *("api", "speaks", "inputs", "tools", "prefill", "stream_usage"),
    }
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def checked_name(name: str) -> str:
    """Return a name that headers, logs and tables can show on one line.

    Raises ValueError for one with a control character.
    """
    if _CONTROL.search(name):
        raise ValueError("expected a name without line breaks and control characters")
    return name


class ModelCard(BaseModel):
    """One expert: what it is called, what it costs, where it answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    description: str = ""
    price_in: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="USD per M tokens")
    price_out: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="USD per M tokens")
    price_per_call: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="USD")
    parameters: float | None = Field(default=None, gt=0, description="total parameters")
    requests_per_minute: int | None = Field(default=None, gt=0, description="that may be sent")
    tokens_per_minute: int | None = Field(default=None, gt=0, description="sent and received")
    context: int | None = Field(default=None, gt=0, description="tokens")
    tags: tuple[str, ...] = ()
    endpoint: str | None = Field(
        default=None, description="base URL of an OpenAI-compatible API, or local:<expert>"
    )
    api_key: str | None = Field(default=None, description="usually ${NAME_OF_A_VARIABLE}")
    upstream_model: str | None = Field(default=None, description="name the endpoint knows it by")
    api: Literal["openai", "anthropic", "litellm"] = Field(
        default="openai", description="API of the endpoint; litellm: any provider of that library"
    )
    speaks: tuple[Literal["chat", "completions", "responses", "embeddings", "messages"], ...] = (
        Field(default=(), description="parts of the API that it has; empty: the usual ones")
    )
    inputs: tuple[Literal["text", "image", "audio", "file"], ...] = Field(
        default=(), description="kinds of content it takes; empty: unknown, so all"
    )
    tools: bool | None = Field(default=None, description="whether it calls tools; null: unknown")
    residency: tuple[str, ...] = Field(default=(), description="regions it keeps data in")
    max_output: int | None = Field(default=None, gt=0, description="tokens of one answer")
    max_parallel: int | None = Field(default=None, gt=0, description="calls at a time")
    prefill: bool = Field(default=False, description="continues a last message of the assistant")
    stream_usage: bool = Field(default=True, description="may be asked for usage in streams")
    headers: dict[str, str] = Field(default_factory=dict, description="sent with every call")
    proxy: str | None = Field(default=None, description="http://host:port to reach it through")
    ca_file: str | None = Field(default=None, description="PEM of authorities to trust, in place")
    timeouts: dict[Literal["connect", "first_byte", "idle", "total"], float] = Field(
        default_factory=dict, description="seconds, in place of the server's own"
    )

    @field_validator("name", "upstream_model")
    @classmethod
    def _is_name(cls, value: str | None) -> str | None:
        return None if value is None else checked_name(value)

    def price(self, input_tokens: Any, output_tokens: Any) -> Any:
        """Return the cost in USD of calls with these token counts (numbers or arrays)."""
        return (
            input_tokens * self.price_in + output_tokens * self.price_out
        ) / 1e6 + self.price_per_call


class Pool(BaseModel):
    """An ordered set of models with unique names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "pool"
    note: str = ""
    cost_unit: str = Field(default="USD", min_length=1, description="what the prices count")
    models: tuple[ModelCard, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique_names(self) -> Pool:
        names = [card.name for card in self.models]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"model named twice: {', '.join(repeated)}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(card.name for card in self.models)

    def __iter__(self) -> Iterator[ModelCard]:  # type: ignore[override]
        return iter(self.models)

    def __len__(self) -> int:
        return len(self.models)

    def __getitem__(self, name: str) -> ModelCard:
        for card in self.models:
            if card.name == name:
                return card
        raise unknown_name("model", name, self.names)

    def subset(self, names: Sequence[str], *, name: str | None = None) -> Pool:
        """Return the pool of these models, in the order given. Unknown names raise UsageError."""
        return Pool(
            name=name or self.name,
            note=self.note,
            cost_unit=self.cost_unit,
            models=tuple(self[n] for n in names),
        )

    def tagged(self, tag: str) -> Pool:
        """Return the pool of the models that carry a tag. Raises UsageError where none does."""
        names = [card.name for card in self.models if tag in card.tags]
        if not names:
            raise unknown_name("tag", tag, {t for card in self.models for t in card.tags})
        return self.subset(names, name=f"{self.name}:{tag}")

    @property
    def has_prices(self) -> bool:
        """Whether any model has a price above zero."""
        return any(c.price_in or c.price_out or c.price_per_call for c in self.models)

    @staticmethod
    def of(names: Iterable[str], *, name: str = "unpriced") -> Pool:
        """Return a pool of models without prices. Raises InputError for names that are none."""
        return _pool_of({"name": name, "models": [{"name": n} for n in names]}, where=name)


def read_pool(source: str | Path) -> Pool:
    """Read ``pool.yaml``, or a pool shipped with the package when ``source`` is its name.

    ``NAME:TAG`` takes the models of a shipped pool that carry a tag: ``mmlu-pro:small``; ``all``
    takes them all.
    Raises InputError naming the file and the field, UsageError for a tag no model carries.
    """
    shipped = shipped_pools()
    name, _, tag = str(source).partition(":")
    if name in shipped:
        text = resources.files(__package__).joinpath(f"pools/{name}.yaml").read_text("utf-8")
        pool = parse_pool(text, where=name)
        return pool if tag in ("", "all") else pool.tagged(tag)
    path = Path(source)
    if not path.is_file():
        raise InputError(
            f"pool {str(source)!r}: no such file; give a pool.yaml or one of: {', '.join(shipped)}"
        )
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"pool {path}: not UTF-8 text; give a YAML file") from error
    except OSError as error:
        raise InputError(f"pool {path}: cannot be read: {error.strerror}") from error
    return parse_pool(text, where=str(path))


def shipped_pools() -> list[str]:
    """Return the names of the pools inside the package."""
    folder = resources.files(__package__).joinpath("pools")
    return sorted(
        p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")
    )


def parse_pool(text: str, *, where: str) -> Pool:
    """Build a pool from YAML text; ``where`` names it in errors."""
    try:
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date
        raise InputError(f"pool {where}: not valid YAML: {yaml_problem(error)}") from None
    return _pool_of(raw, where=where)


def _pool_of(raw: Any, *, where: str) -> Pool:
    try:
        return Pool.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"pool {where}: {describe(error)}") from None


def describe(error: ValidationError) -> str:
    """Return what a pool's validator found on one line, and no value that can be a secret."""
    return on_one_line(problems_of(error, Pool, may_tell=_is_no_secret))


def _is_no_secret(place: Sequence[int | str]) -> bool:
    """Tell whether what stands at a place of a pool is one of a few words, or a number."""
    return len(place) > 2 and place[2] in _PLAIN
