"""From settings to policies that are ready to choose, every mistake found beforehand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crossroads.core.errors import CrossroadsError, InputError, unknown_name
from crossroads.core.problems import Problem
from crossroads.gateway.call import Body
from crossroads.gateway.policies.cascade import CascadeNode
from crossroads.gateway.policies.checks import build_check
from crossroads.gateway.policies.compiled import AUTO, CompiledPolicies
from crossroads.gateway.policies.eligibility import Eligibility
from crossroads.gateway.policies.estimates import Estimates
from crossroads.gateway.policies.learned import LearnedNode
from crossroads.gateway.policies.node import Manner, ModelNode, Node
from crossroads.gateway.policies.preferences import PreferencesNode
from crossroads.gateway.policies.rules import RulesNode, compile_rule, last_rule
from crossroads.gateway.policies.settings import (
    CanarySettings,
    CascadeSettings,
    Common,
    LearnedSettings,
    PoliciesSettings,
    PreferencesSettings,
    RulesSettings,
    ShadowSettings,
    SplitSettings,
    StickySettings,
)
from crossroads.gateway.policies.split import ShadowNode, SplitNode
from crossroads.gateway.policies.sticky import StickyNode
from crossroads.gateway.problems import ConfigError
from crossroads.prompts.artefact import HEADER, npz_bytes
from crossroads.prompts.decide import MinQuality
from crossroads.prompts.fitted import FittedRouter, load_router
from crossroads.prompts.pool import Pool
from crossroads.prompts.preferences.backend import get_backend
from crossroads.prompts.preferences.policies import Preferences
from crossroads.prompts.preferences.router import PreferenceRouter

AskModel = Callable[[str, Body], Awaitable[Body]]
"""Asks a model in the dialect ``chat``; raises ExpertError."""


def compile_policies(
    settings: PoliciesSettings,
    pool: Pool,
    *,
    routers: Mapping[str, FittedRouter] | None = None,
    folder: str | Path | None = None,
    speaks: Mapping[str, frozenset[str]] | None = None,
    ask_model: AskModel | None = None,
    is_timed: bool = True,
) -> CompiledPolicies:
    """Check settings and make them ready.

    Raises InputError naming policy and field for whatever a first request could meet: unknown
    models, policies and rules, cycles, an artefact that is not there or whose models the pool
    lacks; as a ConfigError with every one of them, except where a name is taken twice.

    Parameters
    ----------
    pool : models that can be reached
    routers : fitted routers by the name policies give them, in place of folders
    folder : that relative paths of artefacts start from; by default the working folder
    speaks : dialects of each model as its upstream knows them; by default those of its card
    ask_model : how a judge is asked; needed where a cascade has one
    is_timed : whether ``budget_us`` holds. False to decide again what was decided before: on
        another machine, or a busy one, other estimates would be late
    """
    return _Compiler(
        settings,
        pool,
        routers=routers or {},
        folder=folder,
        speaks=speaks,
        ask_model=ask_model,
        is_timed=is_timed,
    ).compile()


class _Compiler:
    """Builds nodes on demand, targets first."""

    def __init__(
        self,
        settings: PoliciesSettings,
        pool: Pool,
        *,
        routers: Mapping[str, FittedRouter],
        folder: str | Path | None,
        speaks: Mapping[str, frozenset[str]] | None,
        ask_model: AskModel | None,
        is_timed: bool,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._routers = routers
        self._folder = Path(folder) if folder is not None else Path()
        self._ask_model = ask_model
        self._is_timed = is_timed
        self._eligibility = Eligibility(pool, speaks)
        self._chains = settings.fallbacks
        self._surroundings = _version(self._chains, self._eligibility.facts)
        self._bases: dict[str, str] = {}
        self._warnings: list[str] = []
        self._problems: dict[Problem, None] = {}  # each once, in the order they were met
        self._under_way: list[str] = []
        self._matching: set[str] = set()  # policies that lead to one of kind preferences
        self._nodes: dict[str, Node] = {}
        self._estimates: dict[tuple[Any, ...], tuple[Estimates, str]] = {}
        self._build: dict[type[Common], Callable[[str, Any], Node]] = {
            LearnedSettings: self._learned,
            PreferencesSettings: self._preferences,
            RulesSettings: self._rules,
            StickySettings: self._sticky,
            CascadeSettings: self._cascade,
            SplitSettings: self._split,
            CanarySettings: self._canary,
            ShadowSettings: self._shadow,
        }

    def compile(self) -> CompiledPolicies:
        self._check_names()
        for model, chain in self._chains.items():
            with self._noting():
                self._check_chain(model, chain)
        direct = Manner("direct", "", None, self._chains, self._eligibility)
        models = {name: ModelNode(name, direct) for name in self._pool.names}
        self._models = models
        for name in self._settings.policies:
            with self._noting():
                self._node(name, "policies")
        if self._problems:
            remedy = "; crossroads check-config names them"
            raise ConfigError("", tuple(self._problems), remedy=remedy)
        policies = {name: self._nodes[name] for name in self._settings.policies}
        return CompiledPolicies(
            models=models,
            policies=policies,
            default=self._default(policies),
            eligibility=self._eligibility,
            matching=self._matching,
            warnings=self._warnings,
        )

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Keep what is wrong, and go on to what else is."""
        try:
            yield
        except InputError as error:
            place, _, message = str(error).partition(": ")  # no name of a policy has a colon
            self._problems[Problem(place, message)] = None

    def _check_names(self) -> None:
        names = self._settings.policies
        for name in names:
            if ":" in name or "," in name or name.strip() != name:
                raise InputError(
                    f"policies.{name}: expected a name without ':', ',' and outer spaces; rename it"
                )
            if name in self._pool.names:
                raise InputError(
                    f"policies.{name}: pool {self._pool.name!r} has a model of that name; "
                    "rename the policy"
                )
        marked = [name for name, policy in names.items() if policy.default]
        if len(marked) > 1:
            raise InputError(f"policies.{marked[1]}.default: {marked[0]!r} is the default already")
        if marked and AUTO in names and marked[0] != AUTO:
            raise InputError(
                f"policies.{marked[0]}.default: the policy named {AUTO!r} is the default; drop one"
            )
        if marked and AUTO in self._pool.names:
            raise InputError(
                f"pool {self._pool.name!r} has a model named {AUTO!r}, which asks the router; "
                "rename it"
            )

    def _check_chain(self, model: str, chain: tuple[str, ...]) -> None:
        for name in (model, *chain):
            self._check_model(name, f"fallbacks.{model}")
        if model in chain:
            raise InputError(f"fallbacks.{model}: {model!r} cannot stand in for itself; remove it")

    def _default(self, policies: Mapping[str, Node]) -> Node | None:
        for name, policy in self._settings.policies.items():
            if name == AUTO or policy.default:
                return policies[name]
        return None

    # --- targets ---

    def _node(self, name: str, where: str) -> Node:
        """Return the model or policy of a name, built before where it was needed first."""
        if name in self._models:
            return self._models[name]
        if name in self._nodes:
            if name in self._matching:
                self._matching.update(self._under_way)
            return self._nodes[name]
        settings = self._settings.policies.get(name)
        if settings is None:
            known = [*self._settings.policies, *self._pool.names]
            raise InputError(f"{where}: {unknown_name('model or policy', name, known)}")
        if name in self._under_way:
            circle = " -> ".join([*self._under_way[self._under_way.index(name) :], name])
            raise InputError(f"{where}: policies refer to each other in a circle: {circle}")
        self._under_way.append(name)
        try:
            for model in settings.fallbacks:
                self._check_model(model, f"policies.{name}.fallbacks")
            node = self._nodes[name] = self._build[type(settings)](name, settings)
        finally:
            self._under_way.pop()
        return node

    def _check_model(self, name: str, where: str) -> None:
        if name not in self._pool.names:
            raise InputError(f"{where}: {unknown_name('model', name, self._pool.names)}")

    def _manner(self, name: str, settings: Common, *parts: str) -> Manner:
        """Return how a policy presents its choices; ``parts`` are the bases it stands on."""
        own = settings.model_dump(mode="json")
        basis = _version(own, sorted(self._pool.names), parts)
        self._bases[name] = basis
        version = _version(basis, self._surroundings)
        return Manner(name, version, settings, self._chains, self._eligibility, basis=basis)

    def _basis(self, node: Node | None) -> str:
        """Return what a policy stands on; "" for a model, whose card and fallbacks count apart."""
        return "" if node is None else self._bases.get(node.name, "")

    # --- kinds ---

    def _learned(self, name: str, settings: LearnedSettings) -> Node:
        where = f"policies.{name}"
        estimates, digest = self._router(name, settings)
        fitted = estimates.fitted
        missing = [model for model in fitted.models if model not in self._pool.names]
        wanted = settings.models or fitted.models
        for model in wanted:
            if model not in fitted.models:
                raise InputError(
                    f"{where}.models: {unknown_name('model of the router', model, fitted.models)}"
                )
        if missing and not settings.models:
            raise InputError(
                f"{where}.router: {settings.router} chooses among {', '.join(missing)}, which pool "
                f"{self._pool.name!r} lacks; add a card with an endpoint for each, fit on other "
                "models, or list those to choose among under models"
            )
        for model in settings.models:
            self._check_model(model, f"{where}.models")
        fallback = None
        if settings.fallback is not None:
            fallback = self._node(settings.fallback, f"{where}.fallback")
        elif settings.budget_us is not None:
            raise InputError(f"{where}.budget_us: needs a fallback; add 'fallback: MODEL'")
        manner = self._manner(name, settings, digest, self._basis(fallback))
        if not self._is_timed:  # after the version, which is that of the policy as written
            settings = settings.model_copy(update={"budget_us": None})
        try:
            node = LearnedNode(settings, estimates, manner, fallback)
        except CrossroadsError as error:  # the rule: unknown, or costs are unknown
            raise InputError(f"{where}.objective: {error}") from error
        if isinstance(node.rule, MinQuality):
            self._warnings.append(
                f"{where}.objective: {node.rule} takes the cheapest model above its floor already, "
                "so a paced budget cannot make it spend less; lower the floor, or use tradeoff or "
                "budget_usd where a budget is to be paced"
            )
        return node

    def _router(self, name: str, settings: LearnedSettings) -> tuple[Estimates, str]:
        """Return the estimates of an artefact, one for all policies that run it alike."""
        key = (settings.router, settings.cache, settings.max_batch, settings.inline_chars)
        if key in self._estimates:
            return self._estimates[key]
        fitted = self._routers.get(settings.router)
        if fitted is None:
            path = self._folder / settings.router
            try:
                fitted = load_router(path)
            except InputError as error:
                raise InputError(f"policies.{name}.router: {error}") from error
            digest = _digest((path / HEADER).read_bytes())
        else:
            digest = _digest(npz_bytes(fitted.router.state()))
        try:
            made = Estimates(
                fitted,
                cache=settings.cache,
                max_batch=settings.max_batch,
                inline_chars=settings.inline_chars,
            )
        except Exception as error:  # whatever a router may raise: better now than at a request
            raise InputError(
                f"policies.{name}.router: {settings.router} cannot decide: {error}"
            ) from error
        self._estimates[key] = made, digest
        return made, digest

    def _preferences(self, name: str, settings: PreferencesSettings) -> Node:
        where = f"policies.{name}"
        wanted = {"default": settings.otherwise, "policies": settings.policies}
        preferences = Preferences.parse(wanted, where=where)
        for model in preferences.model_names:
            self._check_model(model, f"{where}.policies")
        router = PreferenceRouter(preferences, get_backend(settings.backend, **settings.options))
        version = f"{router.backend.name} {router.backend.version}"
        models = frozenset(self._pool.names)
        self._matching.update(self._under_way)
        return PreferencesNode(router, models, self._manner(name, settings, version))

    def _rules(self, name: str, settings: RulesSettings) -> Node:
        rules = []
        for number, rule in enumerate(settings.rules):
            where = f"policies.{name}.rules[{number}]"
            target = self._node(rule.use, f"{where}.use")
            title = rule.name or f"rule {number}"
            rules.append(compile_rule(title, rule.when, target, where=f"{where}.when"))
        otherwise = self._node(settings.otherwise, f"policies.{name}.otherwise")
        rules.append(last_rule(otherwise))
        manner = self._manner(name, settings, *(self._basis(rule.target) for rule in rules))
        return RulesNode(rules, manner)

    def _sticky(self, name: str, settings: StickySettings) -> Node:
        inner = self._node(settings.policy, f"policies.{name}.policy")
        manner = self._manner(name, settings, self._basis(inner))
        return StickyNode(inner, manner, ttl_s=settings.ttl_s, sessions=settings.sessions)

    def _cascade(self, name: str, settings: CascadeSettings) -> Node:
        where = f"policies.{name}"
        first = self._node(settings.steps[0], f"{where}.steps")
        for model in settings.steps[1:]:
            self._check_model(model, f"{where}.steps")
        check = None
        if settings.check.kind == "sdm":
            _check_sdm(first, where)
        else:
            if settings.check.model is not None:
                self._check_model(settings.check.model, f"{where}.check.model")
            check = build_check(
                settings.check,
                where=f"{where}.check",
                ask_model=self._ask_model,
                eligibility=self._eligibility,
            )
        return CascadeNode(
            first,
            settings.steps[1:],
            self._manner(name, settings, self._basis(first)),
            check=check,
            check_name=settings.check.kind,
        )

    def _split(self, name: str, settings: SplitSettings) -> Node:
        where = f"policies.{name}.weights"
        targets = [(self._node(t, where), weight) for t, weight in settings.weights.items()]
        manner = self._manner(name, settings, *(self._basis(node) for node, _ in targets))
        return SplitNode(
            "split",
            targets,
            manner,
            by_session=settings.by == "session",
            seed=settings.seed,
        )

    def _canary(self, name: str, settings: CanarySettings) -> Node:
        base = self._node(settings.base, f"policies.{name}.base")
        candidate = self._node(settings.candidate, f"policies.{name}.candidate")
        if base is candidate:
            raise InputError(f"policies.{name}.candidate: is the base itself; name another")
        manner = self._manner(name, settings, self._basis(base), self._basis(candidate))
        return SplitNode(
            "canary",
            [(base, 1.0 - settings.share), (candidate, settings.share)],
            manner,
            by_session=settings.by == "session",
            seed=settings.seed,
        )

    def _shadow(self, name: str, settings: ShadowSettings) -> Node:
        base = self._node(settings.base, f"policies.{name}.base")
        candidate = self._node(settings.candidate, f"policies.{name}.candidate")
        manner = self._manner(name, settings, self._basis(base), self._basis(candidate))
        return ShadowNode(base, candidate, manner)


def _check_sdm(first: Node, where: str) -> None:
    """Raise InputError unless the first step's decisions can be verified before an answer."""
    if not isinstance(first, LearnedNode) or first.fitted.verifier is None:
        raise InputError(
            f"{where}.check: sdm needs a first step that is a learned policy whose router was "
            "fitted with --calibrate; or use the check judge, rules or logprobs"
        )
    if first.settings.explore is not None:
        raise InputError(
            f"{where}.check: sdm judges the router's own choices, and policy {first.name!r} "
            "explores; take the exploration out"
        )
    calibrated = first.fitted.verifier.rule
    if str(first.rule) != calibrated:
        raise InputError(
            f"{where}.check: {first.name!r} decides by {first.rule}, and its verifier was "
            f"calibrated for {calibrated}; use that rule, or fit with --calibrate anew"
        )
    if len(first.models) < len(first.fitted.models):
        raise InputError(
            f"{where}.check: {first.name!r} chooses among some of the models its verifier was "
            "calibrated for; let it choose among all"
        )


def _version(*facts: Any) -> str:
    """Return a short name of plain facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
