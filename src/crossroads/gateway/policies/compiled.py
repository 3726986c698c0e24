"""Everything ``model`` in a request can name, ready to choose."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from crossroads.core.errors import UsageError
from crossroads.gateway.call import Call
from crossroads.gateway.contracts import Choice
from crossroads.gateway.errors import ApiError
from crossroads.gateway.policies.eligibility import Eligibility
from crossroads.gateway.policies.learned import LearnedNode
from crossroads.gateway.policies.node import Ask, ModelNode, Node
from crossroads.gateway.policies.preferences import FIELD
from crossroads.gateway.policies.sticky import StickyNode

AUTO = "auto"
POLICY = b"x-crossroads-policy"


class CompiledPolicies:
    """Implements ``contracts.Policies``; made by ``compile_policies``.

    Parameters
    ----------
    models : of the pool, in order
    policies : by name, in order
    default : the policy that ``auto`` asks for; None without
    eligibility : of the pool's models
    matching : names of policies that take a request's own preferences, themselves or within
    warnings : what works and may not be what is meant, a sentence each
    """

    def __init__(
        self,
        *,
        models: Mapping[str, ModelNode],
        policies: Mapping[str, Node],
        default: Node | None,
        eligibility: Eligibility,
        matching: Collection[str] = (),
        warnings: Sequence[str] = (),
    ) -> None:
        self._models = dict(models)
        self._policies = dict(policies)
        self._default = default
        self.warnings = tuple(warnings)
        self._eligibility = eligibility
        self._matching = frozenset(matching)
        if default is not None:
            self._policies = {AUTO: default, **self._policies}

    @property
    def names(self) -> Sequence[str]:
        return (*self._policies, *self._models)

    @property
    def versions(self) -> dict[str, str]:
        """Return the version of every policy: what it would choose changes with it."""
        return {name: node.version for name, node in self._policies.items()}

    def knows(self, name: str) -> bool:
        """Whether a request may name this: a model, or a policy, with or without a rule."""
        return name in self._models or name.partition(":")[0] in self._policies

    async def choose(self, call: Call, *, cost_price: float = 0.0) -> Choice:
        """Return who answers. ``cost_price``: quality per USD that a paced budget asks for.

        Raises ApiError: 404 unknown name, 400 where no eligible model is left or the rule or the
        preferences of a request are wrong, 403 where the client may not ask for the name.
        """
        beside = _policy_of(call)
        name = beside or call.model
        model = self._models.get(name)
        open_to = call.client.models
        # Only the name of a policy is open with any rule: a model may have a colon in its own.
        asked = {name} if model is not None else {name, name.partition(":")[0]}
        if open_to is not None and open_to.isdisjoint(asked):
            raise ApiError(
                f"The key {call.client.key_id!r} may not ask for {name!r}; it may ask for "
                f"{', '.join(sorted(open_to)) or 'nothing'}.",
                status=403,
                code="model_not_allowed",
                param=_place_of(call) if beside else "model",
            )
        allowed = self._eligibility.allowed(call)
        if model is not None:
            return await self._direct(model, call, allowed)
        rule = ""
        node = self._policies.get(name)
        if node is None:
            node, rule = self._ruled(name, _place_of(call) if beside else "model")
        if FIELD in call.body and node.name not in self._matching:
            raise self._unmatched(name)
        ask = Ask(
            call=call,
            allowed=allowed,
            is_all=allowed is self._eligibility.all,
            cost_price=cost_price,
            rule=rule,
            text=call.text,
            key=call.session,
        )
        return await node.choose(ask)

    async def _direct(self, node: ModelNode, call: Call, allowed: frozenset[str]) -> Choice:
        if node.name not in allowed:
            if not self._eligibility.named(call, node.name):
                raise self._eligibility.refusal(call, node.candidates, node.name)
            allowed = allowed | node.candidates
        is_all = allowed is self._eligibility.all
        return await node.choose(Ask(call, allowed, is_all, 0.0, "", "", ""))

    def _ruled(self, name: str, param: str) -> tuple[Node, str]:
        """Return the policy and the rule of ``NAME:RULE``. Raises ApiError 404 about ``param``."""
        base, _, rule = name.partition(":")
        node = self._policies.get(base)
        if node is None and base != AUTO:
            what = "model" if param == "model" else "policy"
            raise _not_found(
                f"The {what} {name!r} does not exist; GET /v1/models lists those that do.", param
            )
        if node is None:
            raise _not_found(
                "This server has no policy 'auto'; name a model or a policy (GET /v1/models lists "
                "them). Whoever runs it can add policies.auto to its configuration, or start it "
                "with --router.",
                param,
            )
        if not isinstance(node, LearnedNode):
            raise _not_found(
                f"The decision rule {rule!r} needs a policy of kind 'learned', and {base!r} is of "
                f"kind {node.kind!r}; ask for plain {base!r}, or a learned policy under the rule.",
                param,
            )
        return node, rule

    def _unmatched(self, name: str) -> ApiError:
        """Return the error for preferences that the policy asked for would not read."""
        takers = ", ".join(sorted(self._matching))
        return ApiError(
            f"{FIELD}: the policy {name!r} does not take them; "
            + (f"ask for {takers}." if takers else "only one of kind 'preferences' does."),
            param=FIELD,
        )

    def adopt(self, before: CompiledPolicies) -> None:
        """Take over sessions, estimates and the watch for drift of policies that did not change.

        For a reload; call it before the first request.
        """
        for name, node in self._policies.items():
            old: Any = before._policies.get(name)
            if isinstance(node, LearnedNode | StickyNode) and _basis(old) == node.basis:
                node.adopt(old)  # of the same class: the basis covers the kind

    def describe(self) -> dict[str, Any]:
        """Return every policy as plain data, for the dashboard."""
        found = {}
        for name, node in self._policies.items():
            found[name] = {"name": node.name, "version": node.version, **node.describe()}
        return found

    def preview(self, name: str, rule: str | float) -> dict[str, Any]:
        """Return the quality and cost that a learned policy would have under another rule.

        ``rule`` is text, or a price in quality per USD; the result is that of ``Frontier.point``.
        Raises ApiError: 404 where no learned policy has the name, 400 for a rule it cannot use.
        """
        node = self._policies.get(name)
        if not isinstance(node, LearnedNode):
            raise _not_found(
                f"No learned policy is named {name!r}, so there is nothing to preview.", "policy"
            )
        try:
            return node.preview(rule)
        except UsageError as error:
            raise ApiError(str(error), code="invalid_rule", param="rule") from error

    def health(self) -> dict[str, Any]:
        """Return the state of the policies that have one, and ``state`` of the worst."""
        parts = {}
        for name, node in self._policies.items():
            told = node.health()
            if told is not None:
                parts[name] = told
        is_degraded = any(part["state"] != "ok" for part in parts.values())
        return {"state": "degraded" if is_degraded else "ok", "policies": parts}

    def close(self) -> None:
        """End the threads."""
        for node in self._policies.values():
            node.close()


def _basis(node: Node | None) -> str:
    """Return what a policy stands on, where it has something to hand on; else ""."""
    return node.basis if isinstance(node, LearnedNode | StickyNode) else ""


def _policy_of(call: Call) -> str:
    """Return the policy that a request names beside its model; "" without."""
    given = call.headers.get(POLICY)
    if given:
        return given.decode("latin-1").strip()
    own = call.body.get("crossroads")
    named = own.get("policy") if own is not None and isinstance(own, Mapping) else None
    return named if isinstance(named, str) else ""


def _place_of(call: Call) -> str:
    """Return where a request names a policy beside its model."""
    own = (call.native or call.body).get("crossroads")
    is_field = isinstance(own, Mapping) and own.get("policy") is not None
    return "crossroads.policy" if is_field else POLICY.decode()


def _not_found(message: str, param: str) -> ApiError:
    code = "model_not_found" if param == "model" else "policy_not_found"
    return ApiError(message, status=404, code=code, param=param)
