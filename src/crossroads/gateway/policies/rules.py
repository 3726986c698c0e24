"""Ordered rules over what a request looks like: the first that holds decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from crossroads.core.errors import InputError, unknown_name
from crossroads.gateway.contracts import Choice
from crossroads.gateway.policies.eligibility import IneligibleError
from crossroads.gateway.policies.language import LANGUAGES, language
from crossroads.gateway.policies.node import Ask, Manner, ModelNode, Node
from crossroads.gateway.policies.patterns import Pattern
from crossroads.gateway.policies.settings import Conditions

Test = Callable[[Ask], bool]


@dataclass(frozen=True, slots=True)
class Rule:
    """A compiled rule: tests, the cheapest first, and where it sends a request."""

    name: str
    tests: tuple[Test, ...]
    told: str
    target: Node


class RulesNode:
    """Sends a request where the first rule that holds says.

    A rule whose target may not answer the request is passed over; ``otherwise`` comes last.
    """

    kind = "rules"

    def __init__(self, rules: Sequence[Rule], manner: Manner) -> None:
        self.name = manner.name
        self.version = manner.version
        self._manner = manner
        self._rules = tuple(rules)
        self.candidates = frozenset[str]().union(*(rule.target.candidates for rule in rules))
        self._prepared = [
            self._of_model(rule, manner.eligibility.all)
            if isinstance(rule.target, ModelNode)
            else None
            for rule in rules
        ]

    async def choose(self, ask: Ask) -> Choice:
        for index, rule in enumerate(self._rules):
            for test in rule.tests:
                if not test(ask):
                    break
            else:
                prepared = self._prepared[index]
                if prepared is not None and ask.is_all:
                    return prepared
                if rule.target.candidates.isdisjoint(ask.allowed):
                    continue
                if prepared is not None:
                    return self._of_model(rule, ask.allowed)
                try:
                    inner = await rule.target.choose(ask)
                except IneligibleError:
                    continue
                return self._manner.adopt(
                    inner,
                    ask,
                    reason=f"{rule.told}; {inner.reason}",
                    labels={"rule": rule.name},
                )
        raise self._manner.refusal(ask, self.candidates)

    def _of_model(self, rule: Rule, allowed: frozenset[str]) -> Choice:
        return self._manner.choice(
            rule.target.name,
            allowed=allowed,
            reason=f"{rule.told}: {rule.target.name}",
            labels={"rule": rule.name},
        )

    def describe(self) -> dict[str, Any]:
        rules = [
            {"name": rule.name, "holds": rule.told, "use": rule.target.name} for rule in self._rules
        ]
        return {"kind": self.kind, "models": sorted(self.candidates), "rules": rules}

    def health(self) -> dict[str, Any] | None:
        return None

    def close(self) -> None:
        return None


def compile_rule(name: str, when: Conditions, target: Node, *, where: str) -> Rule:
    """Return a rule. Raises InputError for a pattern or a language that cannot be used."""
    return Rule(
        name=name,
        tests=tuple(_tests(when, where)),
        told=f"rule {name!r} holds ({_plain(when)})",
        target=target,
    )


def last_rule(target: Node) -> Rule:
    """Return the rule that always holds."""
    return Rule(name="otherwise", tests=(), told="no rule holds", target=target)


def _plain(when: Conditions) -> str:
    """Return the conditions as a person reads them."""
    given = when.model_dump(exclude_defaults=True)
    return ", ".join(f"{name.replace('_', ' ')}: {_value(value)}" for name, value in given.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return " and ".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, tuple):
        return " or ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _tests(when: Conditions, where: str) -> list[Test]:
    """Return the tests of a rule, those that read the text last."""
    tests: list[Test] = []
    if when.stream is not None:
        tests.append(lambda ask: ask.call.is_stream is when.stream)
    if when.dialects:
        dialects = frozenset(when.dialects)
        tests.append(lambda ask: ask.call.dialect in dialects)
    if when.keys:
        keys = frozenset(when.keys)
        tests.append(lambda ask: ask.call.client.key_id in keys)
    if when.teams:
        teams = frozenset(when.teams)
        tests.append(lambda ask: ask.call.client.team in teams)
    for name, value in when.headers.items():
        tests.append(_header(name, value))
    if when.session is not None:
        tests.append(lambda ask: bool(ask.key) is when.session)
    if when.tools is not None:
        tests.append(lambda ask: ask.call.has_tools is when.tools)
    if when.tags:
        tags = frozenset(when.tags)
        tests.append(lambda ask: tags <= ask.call.tags)
    for name, value in when.metadata.items():
        tests.append(_metadata(name, value))
    if when.inputs:
        inputs = frozenset(when.inputs)
        tests.append(lambda ask: not inputs.isdisjoint(ask.call.inputs))
    tests += _length_tests(when)
    tests += _text_tests(when, where)
    return tests


def _header(name: str, value: str) -> Test:
    key, wanted = name.lower().encode("latin-1", "replace"), value.encode("latin-1", "replace")
    return lambda ask: ask.call.headers.get(key) == wanted


def _metadata(name: str, value: str) -> Test:
    return lambda ask: ask.call.metadata.get(name) == value


def _length_tests(when: Conditions) -> list[Test]:
    tests: list[Test] = []
    if when.min_tokens is not None:
        least = when.min_tokens
        tests.append(lambda ask: ask.call.input_tokens >= least)
    if when.max_tokens is not None:
        most = when.max_tokens
        tests.append(lambda ask: ask.call.input_tokens <= most)
    return tests


def _text_tests(when: Conditions, where: str) -> list[Test]:
    tests: list[Test] = []
    if when.regex is not None:
        pattern = Pattern(when.regex, where=f"{where}.regex")
        tests.append(lambda ask: pattern.found_in(ask.text))
    for code in when.languages:
        if code not in LANGUAGES:
            raise InputError(f"{where}.languages: {unknown_name('language', code, LANGUAGES)}")
    if when.languages:
        languages = frozenset(when.languages)
        tests.append(lambda ask: language(ask.text) in languages)
    return tests
