"""Which models may answer a request at all: hard constraints, applied before any scoring.

What a model card does not say (context, inputs, tools, output) does not rule the model out.
Residency is the exception: data that must stay in a region goes only where a card promises it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from crossroads.gateway.call import Call
from crossroads.gateway.errors import ApiError
from crossroads.prompts.pool import ModelCard, Pool

RESIDENCY = b"x-crossroads-residency"
_ENOUGH = 1 << 62  # tokens: no card bounds them
_TEXT = frozenset(("text",))
# What an upstream speaks whose card does not say: a test compares them with the upstreams' own.
_OPENAI = frozenset(("chat", "completions", "embeddings"))
_ANTHROPIC = frozenset(("messages", "chat"))


class IneligibleError(ApiError):
    """No model of a policy may answer this request: 400, naming the constraint."""


@dataclass(frozen=True, slots=True)
class _Facts:
    """A model card, compiled."""

    name: str
    context: int
    max_output: int
    inputs: frozenset[str] | None
    tools: bool
    residency: frozenset[str]
    speaks: frozenset[str]

    @classmethod
    def of(cls, card: ModelCard, speaks: frozenset[str] | None) -> _Facts:
        if speaks is None:
            speaks = _spoken(card)
        return cls(
            name=card.name,
            context=card.context or _ENOUGH,
            max_output=card.max_output or _ENOUGH,
            inputs=frozenset(card.inputs) or None,
            tools=card.tools is not False,
            residency=frozenset(card.residency),
            speaks=speaks,
        )

    def has_dialect(self, call: Call) -> bool:
        if call.dialect == "embeddings":
            return "embeddings" in self.speaks
        return not self.speaks or "chat" in self.speaks or call.dialect in self.speaks


def _spoken(card: ModelCard) -> frozenset[str]:
    """Return the dialects the card's upstream would speak; those of the card where it has none.

    So policies compiled without upstreams, for a replay, decide as the gateway does, and are of the
    same version.
    """
    if card.api == "litellm" or (card.endpoint or "").startswith("local:"):
        return frozenset(("chat",))
    if card.endpoint is None or card.speaks:
        return frozenset(card.speaks)
    return _ANTHROPIC if card.api == "anthropic" else _OPENAI


class Eligibility:
    """The constraints of a pool.

    Parameters
    ----------
    pool : the models
    speaks : dialects of each model as its upstream knows them; by default what an upstream would
        know by the card
    """

    def __init__(self, pool: Pool, speaks: Mapping[str, frozenset[str]] | None = None) -> None:
        facts = [_Facts.of(card, (speaks or {}).get(card.name)) for card in pool]
        self._facts = {fact.name: fact for fact in facts}
        self.all = frozenset(self._facts)
        # A request within these bounds suits every model: most requests, and nothing is filtered.
        self._least_context = min(fact.context for fact in facts)
        self._least_output = min(fact.max_output for fact in facts)
        self._all_tools = all(fact.tools for fact in facts)
        self._all_chat = all(not fact.speaks or "chat" in fact.speaks for fact in facts)
        self._all_text = all(fact.inputs is None or "text" in fact.inputs for fact in facts)
        self._named: dict[frozenset[str], frozenset[str]] = {}
        self._tests: tuple[tuple[str, str, Callable[[Call, _Facts], bool]], ...] = (
            ("dialect", "unsupported_api", lambda call, fact: fact.has_dialect(call)),
            ("the key's models", "model_not_allowed", self._is_allowed),
            ("data residency", "residency", self._is_resident),
            ("input", "unsupported_input", _takes_inputs),
            ("tools", "unsupported_tools", lambda call, fact: fact.tools or not call.has_tools),
            ("context length", "context_length_exceeded", _fits),
        )

    @property
    def facts(self) -> list[list[Any]]:
        """What the cards say, as plain data: two pools alike in it allow the same."""
        return [
            [sorted(value) if isinstance(value, frozenset) else value for value in astuple(fact)]
            for _, fact in sorted(self._facts.items())
        ]

    def allowed(self, call: Call) -> frozenset[str]:
        """Return the models that may answer; ``self.all`` itself where all may."""
        if self._suits_all(call):
            return self.all
        fit = [name for name, fact in self._facts.items() if self._passes(call, fact)]
        return self.all if len(fit) == len(self._facts) else frozenset(fit)

    def refusal(self, call: Call, candidates: Iterable[str], asked: str) -> IneligibleError:
        """Return the error that names the constraint which removed the last of the candidates."""
        left = [self._facts[name] for name in sorted(candidates)]
        for what, code, test in self._tests:
            stay = [fact for fact in left if test(call, fact)]
            if not stay:
                names = ", ".join(fact.name for fact in left[:4]) + (", ..." * (len(left) > 4))
                return IneligibleError(
                    f"No model of {asked!r} may answer this request: {what} rules out {names} "
                    f"({_demand(what, call)}).",
                    code=code,
                    param=_PARAMS.get(what),
                )
            left = stay
        return IneligibleError(f"No model of {asked!r} may answer this request.")

    def named(self, call: Call, name: str) -> bool:
        """Whether a model that the request names may be tried.

        The length is not judged: ours is an estimate, and the model itself knows better. Nor does
        a card without dialects rule out embeddings here.
        """
        fact = self._facts[name]
        spoken = not fact.speaks or fact.has_dialect(call)
        return spoken and all(test(call, fact) for _, _, test in self._tests[1:-1])

    def forbids(self, call: Call, name: str) -> str:
        """Return why a model may not be shown what a request says; "" where it may.

        For a model that does not answer: what the key may use and where the data may go.
        """
        fact = self._facts[name]
        for what, _, test in self._tests[1:3]:
            if not test(call, fact):
                return f"{what} ({_demand(what, call)})"
        return ""

    def _suits_all(self, call: Call) -> bool:
        client = call.client
        if client.models is not None or client.residency or RESIDENCY in call.headers:
            return False
        if call.dialect == "embeddings" or not (self._all_chat and self._all_text):
            return False
        if call.has_tools and not self._all_tools:
            return False
        output = call.max_output_tokens or 0
        return (
            call.inputs == _TEXT
            and call.input_tokens + output <= self._least_context
            and output <= self._least_output
        )

    def _passes(self, call: Call, fact: _Facts) -> bool:
        return all(test(call, fact) for _, _, test in self._tests)

    def _is_allowed(self, call: Call, fact: _Facts) -> bool:
        names = call.client.models
        if names is None:
            return True
        models = self._named.get(names)
        if models is None:
            if len(self._named) > 10_000:
                self._named.clear()
            # A list of policies alone leaves the choice to them.
            models = self._named[names] = (names & self.all) or self.all
        return fact.name in models

    def _is_resident(self, call: Call, fact: _Facts) -> bool:
        regions = _regions(call)
        return regions is None or (bool(fact.residency) and fact.residency <= regions)


def _regions(call: Call) -> frozenset[str] | None:
    """Return where the data may go; None for anywhere."""
    given = call.headers.get(RESIDENCY)
    owned = call.client.residency
    if given is None:
        return owned or None
    wanted = frozenset(p.strip() for p in given.decode("latin-1").split(",") if p.strip())
    return wanted & owned if owned else wanted


def _takes_inputs(call: Call, fact: _Facts) -> bool:
    return fact.inputs is None or call.inputs <= fact.inputs


def _fits(call: Call, fact: _Facts) -> bool:
    output = call.max_output_tokens or 0
    return call.input_tokens + output <= fact.context and output <= fact.max_output


_PARAMS = {"dialect": "model", "input": "messages", "tools": "tools", "context length": "messages"}


def _demand(what: str, call: Call) -> str:
    if what == "dialect":
        return f"none of them speaks {call.dialect}"
    if what == "the key's models":
        return f"the key {call.client.key_id!r} may not use them"
    if what == "data residency":
        regions = sorted(_regions(call) or ())
        return f"none promises to keep data in {' or '.join(regions) or 'a region open to the key'}"
    if what == "input":
        return f"the messages hold {', '.join(sorted(call.inputs))}"
    if what == "tools":
        return "none of them calls tools"
    output = call.max_output_tokens
    asked = f" and {output} of output" if output else ""
    return f"about {call.input_tokens} tokens of input{asked}"
