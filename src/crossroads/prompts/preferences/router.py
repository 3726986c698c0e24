"""From a chat to a model: conversation, policy, model, with the reason."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from crossroads.core.decision import Decision
from crossroads.prompts.preferences import prompt
from crossroads.prompts.preferences.backend import Backend, get_backend
from crossroads.prompts.preferences.conversation import fit_conversation, read_turns
from crossroads.prompts.preferences.policies import OTHER, Preferences

ROUTER = "preferences"


class PreferenceRouter:
    """Sends a conversation to the model of the policy its latest intent falls under.

    Parameters
    ----------
    preferences : policies, mapping and default; may be replaced at any time, nothing is fitted
    backend : what chooses the policy, default the matcher on static embeddings
    """

    def __init__(self, preferences: Preferences, backend: Backend | None = None) -> None:
        self.preferences = preferences
        self.backend = backend if backend is not None else get_backend()

    def decide(
        self, messages: Sequence[Mapping[str, Any]], *, override: Preferences | None = None
    ) -> Decision:
        """Return the decision for OpenAI-shaped messages.

        ``override`` replaces the preferences for this request alone. With preferences for fewer
        than two models there is nothing to choose, and the default model answers. ``scores`` are
        the back end's, by policy; ``details['route']`` is the policy's name or ``other``, of
        which the confidence is 0.
        """
        started = time.perf_counter()
        wanted = override if override is not None else self.preferences
        scores: Mapping[str, float] = {}
        route, margin = OTHER, 0.0
        if wanted.is_routing:
            turns = fit_conversation(
                read_turns(messages), prompt_chars=len(prompt.head(wanted.policies))
            )
            choice = self.backend.choose(wanted.policies, turns)
            route, scores = choice.route, choice.scores
            # No policy speaks for the default, however clearly none fits.
            margin = 0.0 if route == OTHER else choice.margin
        return Decision(
            chosen=(wanted.model_of(route),),
            scores=scores,
            rule="argmax",
            reason=_reason(route, wanted, self.backend.name),
            propensity=1.0,
            predicted_quality=0.0,  # preferences say who should answer, not how well
            predicted_cost_usd=None,
            confidence=min(margin, 1.0),
            seconds=time.perf_counter() - started,
            router=ROUTER,
            version=f"{self.backend.name} {self.backend.version}",
            details={"route": route},
        )


def _reason(route: str, preferences: Preferences, backend: str) -> str:
    model = preferences.model_of(route)
    if not preferences.is_routing:
        return f"preferences name fewer than two models: the default {model} answers"
    if route == OTHER:
        return f"no policy fits the latest request ({backend}): the default {model} answers"
    return f"policy {route!r} fits the latest request ({backend}): {model} serves it"
