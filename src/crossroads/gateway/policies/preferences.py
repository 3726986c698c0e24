"""Natural-language policies: the model of the description that fits the latest request."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from crossroads.core.decision import Decision
from crossroads.core.errors import InputError
from crossroads.gateway.call import Client
from crossroads.gateway.contracts import Choice
from crossroads.gateway.errors import ApiError
from crossroads.gateway.policies.node import Ask, Manner
from crossroads.prompts.preferences.policies import LEAST_MODELS, Preferences
from crossroads.prompts.preferences.router import PreferenceRouter

FIELD = "routing_preferences"  # of a request that brings its own
_INLINE_BYTES = 8192  # of a request that the matcher reads on the event loop


class PreferencesNode:
    """Asks ``PreferenceRouter``: the matcher on the event loop while requests are short.

    A request may bring its own preferences in the field ``routing_preferences``. Where the model
    of the fitting policy may not answer, the default does, and else the next in order.
    """

    kind = "preferences"

    def __init__(self, router: PreferenceRouter, models: frozenset[str], manner: Manner) -> None:
        self.name = manner.name
        self.version = manner.version
        self._router = router
        self._models = models
        self._manner = manner
        self.candidates = frozenset(router.preferences.model_names)
        self._is_quick = router.backend.name == "matcher"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="preferences")

    async def choose(self, ask: Ask) -> Choice:
        own = ask.call.body.get(FIELD)
        override = None if own is None else self._parsed(own, ask.call.client)
        messages = ask.call.body.get("messages") or []
        if self._is_quick and ask.call.size <= _INLINE_BYTES:
            decision = self._router.decide(messages, override=override)
        else:
            decision = await asyncio.get_running_loop().run_in_executor(
                self._thread, lambda: self._router.decide(messages, override=override)
            )
        wanted = override or self._router.preferences
        return self._choice(ask, decision, wanted)

    def _choice(self, ask: Ask, decision: Decision, wanted: Preferences) -> Choice:
        model, reason = decision.model, decision.reason
        if model not in ask.allowed:
            left = [name for name in wanted.model_names if name in ask.allowed]
            if not left:
                raise self._manner.eligibility.refusal(ask.call, wanted.model_names, self.name)
            model = left[0]
            reason = f"{reason}; it may not answer this request, {model} may"
        return self._manner.choice(
            model,
            allowed=ask.allowed,
            reason=reason,
            decision=_unscored(decision),
            labels={"route": str(decision.details["route"])},
        )

    def _parsed(self, own: Any, client: Client) -> Preferences:
        """Check a request's own preferences. Raises ApiError 400, 403.

        A key with a list chooses among what is on it and what the policy itself would choose among:
        a list of policies alone must not open the whole pool.
        """
        default = self._router.preferences.default
        try:
            found = Preferences.parse(own, default=default, where=FIELD)
        except InputError as error:
            raise ApiError(str(error), param=FIELD) from error
        unknown = [name for name in found.model_names if name not in self._models]
        if unknown:
            raise ApiError(
                f"{FIELD}: the model {unknown[0]!r} does not exist; "
                "GET /v1/models lists those that do.",
                param=FIELD,
            )
        if client.models is not None:
            barred = set(found.model_names) - client.models - self.candidates
            if barred:
                raise ApiError(
                    f"{FIELD}: the key {client.key_id!r} may not ask for {min(barred)!r}.",
                    status=403,
                    code="model_not_allowed",
                    param=FIELD,
                )
        if not found.is_routing:
            raise ApiError(
                f"{FIELD}: expected entries for at least {LEAST_MODELS} models, got "
                f"{len(set(found.models.values()))}: with one there is nothing to choose; name it "
                "as the model instead.",
                param=FIELD,
            )
        return found

    def describe(self) -> dict[str, Any]:
        preferences = self._router.preferences
        return {
            "kind": self.kind,
            "models": sorted(self.candidates),
            "backend": self._router.backend.name,
            "otherwise": preferences.default,
            "policies": [
                {
                    "name": policy.name,
                    "description": policy.description,
                    "model": preferences.model_of(policy.name),
                }
                for policy in preferences.policies
            ],
        }

    def health(self) -> dict[str, Any] | None:
        return None

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _unscored(decision: Decision) -> Decision:
    """Return the decision without scores: they are of descriptions, not estimates of models."""
    return Decision(  # in half the time of dataclasses.replace
        chosen=decision.chosen,
        scores={},
        rule=decision.rule,
        reason=decision.reason,
        propensity=decision.propensity,
        predicted_quality=decision.predicted_quality,
        predicted_cost_usd=decision.predicted_cost_usd,
        confidence=decision.confidence,
        seconds=decision.seconds,
        router=decision.router,
        version=decision.version,
        seed=decision.seed,
        details=decision.details,
    )
