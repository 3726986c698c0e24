"""Policies in plain language, and the table from policy to model.

A policy says what it is for; which model serves it is a separate mapping that can be swapped
without touching, let alone refitting, what chooses the policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from crossroads.core.errors import InputError

OTHER = "other"  # the answer that names no policy
LEAST_MODELS = 2  # with preferences for fewer there is nothing to choose


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """A kind of request.

    Attributes
    ----------
    name : what a router answers; any text but ``other``
    description : domain, or domain and action, in plain language
    examples : requests the policy is meant for, read by the matcher only
    """

    name: str
    description: str
    examples: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.strip() or self.name != self.name.strip():
            raise InputError(
                f"policy {self.name!r}: expected a name without spaces around it; rename it"
            )
        if self.name.casefold() == OTHER:
            raise InputError(f"policy {self.name!r}: this name means 'no policy'; rename it")
        if not self.description.strip():
            raise InputError(f"policy {self.name!r}: the description is empty; say what it is for")


def check_unique(policies: Sequence[Policy]) -> tuple[Policy, ...]:
    """Return the policies. Raises InputError where a name comes twice, whatever the models."""
    seen: set[str] = set()
    for policy in policies:
        if policy.name in seen:
            raise InputError(
                f"policy {policy.name!r} is described twice; names are unique over all models, "
                "rename one"
            )
        seen.add(policy.name)
    return tuple(policies)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preferences:
    """A route set C, the mapping T from policy to model, and the model of everything else.

    Attributes
    ----------
    policies : C
    models : T, the model of each policy by name
    default : the model where no policy fits
    """

    policies: tuple[Policy, ...]
    models: Mapping[str, str]
    default: str
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        check_unique(self.policies)
        object.__setattr__(self, "names", frozenset(p.name for p in self.policies))
        if not self.default:
            raise InputError("preferences: no default model; name the one for everything else")
        unmapped = [p.name for p in self.policies if not self.models.get(p.name)]
        if unmapped:
            raise InputError(f"policy {unmapped[0]!r} has no model; map it to one")
        unknown = sorted(set(self.models) - self.names)
        if unknown:
            raise InputError(
                f"preferences: a model for {unknown[0]!r}, which no policy describes; "
                "describe it or drop it"
            )

    @property
    def is_routing(self) -> bool:
        """Whether there is a choice: at least two models carry preferences."""
        return len(set(self.models.values())) >= LEAST_MODELS

    @property
    def model_names(self) -> tuple[str, ...]:
        """Every model that can be chosen, the default first."""
        return tuple(dict.fromkeys((self.default, *self.models.values())))

    def model_of(self, route: str | None) -> str:
        """Return the model of a policy; the default for None, ``other`` and unknown names."""
        return self.models.get(route, self.default) if route is not None else self.default

    def remapped(self, models: Mapping[str, str]) -> Self:
        """Return the same policies under another T; unnamed policies keep their model."""
        return replace(self, models={**self.models, **models})

    @classmethod
    def parse(cls, value: Any, *, default: str | None = None, where: str = "preferences") -> Self:
        """Build from plain data: ``{default, policies: [{name, description, model, examples}]}``.

        A bare list is the policies, with ``default`` from the argument: the form of a request
        that brings its own. Raises InputError naming place and field.
        """
        if isinstance(value, Mapping):
            _only(value, {"default", "policies"}, where)
            default = value.get("default", default)
            value = value.get("policies")
        if not isinstance(value, list) or not value:
            raise InputError(f"{where}: expected a list of policies, got {value!r:.60}")
        if not isinstance(default, str) or not default:
            raise InputError(f"{where}: no default model; add 'default: MODEL'")
        policies, models = [], {}
        for number, entry in enumerate(value):
            policy, model = _entry(entry, f"{where}: policies[{number}]")
            policies.append(policy)
            models[policy.name] = model
        return cls(policies=tuple(policies), models=models, default=default)


def _entry(entry: Any, where: str) -> tuple[Policy, str]:
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: expected name, description and model, got {entry!r:.60}")
    _only(entry, {"name", "description", "model", "examples"}, where)
    for name in ("name", "description", "model"):
        if not isinstance(entry.get(name), str):
            raise InputError(f"{where}: {name!r} must be a text, got {entry.get(name)!r:.60}")
    examples = entry.get("examples") or []
    if not isinstance(examples, list) or not all(isinstance(text, str) for text in examples):
        raise InputError(f"{where}: 'examples' must be a list of texts, got {examples!r:.60}")
    policy = Policy(name=entry["name"], description=entry["description"], examples=tuple(examples))
    return policy, entry["model"]


def _only(value: Mapping[Any, Any], known: set[str], where: str) -> None:
    unknown = [key for key in value if key not in known]
    if unknown:
        raise InputError(
            f"{where}: unknown field {unknown[0]!r}; expected {', '.join(sorted(known))}"
        )
