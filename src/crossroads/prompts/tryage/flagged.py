"""Route a prompt by a fitted router and by the flags the prompt carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crossroads.core.decision import Decision
from crossroads.prompts.fitted import FittedRouter
from crossroads.prompts.tryage.flags import FLAGS, OnUnknown, parse_flags
from crossroads.prompts.tryage.goals import GOALS, Goal, LeastPenalisedLoss, penalties


@dataclass(frozen=True, kw_only=True, slots=True)
class FlaggedDecision:
    """Where a prompt goes, the prompt to send there, and the goals that had a say."""

    decision: Decision
    prompt: str
    weights: Mapping[str, float]


def route_flagged(
    router: FittedRouter,
    text: str,
    *,
    goals: Mapping[str, Goal] = GOALS,
    flags: Mapping[str, tuple[str, float]] = FLAGS,
    on_unknown: OnUnknown = "refuse",
) -> FlaggedDecision:
    """Decide where one prompt goes: flags out, losses predicted, penalties added.

    Without flags the router's own rule decides. ``goals`` may hold your own functions of the pool;
    name them in ``flags`` or in ``[lambda name=0.5]``. Raises what ``parse_flags`` and
    ``penalties`` raise.
    """
    asked = parse_flags(text, goals=tuple(goals), flags=flags, on_unknown=on_unknown)
    rule = None
    if asked.weights:
        rule = LeastPenalisedLoss(penalties(router.pool, asked.weights, goals))
    decision = router.route(asked.prompt, rule=rule)
    return FlaggedDecision(decision=decision, prompt=asked.prompt, weights=asked.weights)
