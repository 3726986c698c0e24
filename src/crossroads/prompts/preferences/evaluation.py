"""How often a back end names the right policy: single requests, and turns of a drifting chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from crossroads.core.progress import Progress
from crossroads.prompts.preferences.backend import Backend
from crossroads.prompts.preferences.matcher import PolicyMatcher
from crossroads.prompts.preferences.policies import OTHER
from crossroads.prompts.preferences.synthetic import Dialogue, Prompts, Recipe, draw_dialogues


def draw_cases(
    prompts: Prompts, recipe: Recipe, *, route_sets: int, each: int, seed: int
) -> list[Dialogue]:
    """Return ``each`` dialogues for every one of ``route_sets`` sets of policies."""
    rng = np.random.default_rng(seed)
    drawn = (draw_dialogues(prompts, recipe, rng, each) for _ in range(route_sets))
    return [dialogue for group in drawn for dialogue in group]


def last_turns(
    backend: Backend, dialogues: Sequence[Dialogue], progress: Progress | None = None
) -> list[bool]:
    """Return whether the route of each dialogue's last turn is right."""
    found = []
    for number, dialogue in enumerate(dialogues, start=1):
        turns, route = dialogue.until(dialogue.num_user_turns - 1)
        found.append(backend.choose(dialogue.policies, turns).route == route)
        if progress:
            progress(number, len(dialogues))
    return found


def accuracy_by_level(backend: Backend, dialogues: Sequence[Dialogue]) -> dict[str, float]:
    """Return the share of right turns, spans and conversations.

    A span is a run of user turns with one route; it and a conversation count when every turn of
    them is right.
    """
    turns, spans, conversations = [], [], []
    for dialogue in dialogues:
        right = []
        for number in range(dialogue.num_user_turns):
            said, route = dialogue.until(number)
            right.append(backend.choose(dialogue.policies, said).route == route)
        turns += right
        spans += list(_spans(dialogue.routes, right))
        conversations.append(all(right))
    return {
        "turn": float(np.mean(turns)),
        "span": float(np.mean(spans)),
        "conversation": float(np.mean(conversations)),
    }


def _spans(routes: Sequence[str], right: Sequence[bool]) -> Iterator[bool]:
    for _, run in groupby(zip(routes, right, strict=True), key=lambda pair: pair[0]):
        yield all(is_right for _, is_right in run)


def order_sensitivity(backend: Backend, dialogues: Sequence[Dialogue], *, seed: int) -> float:
    """Return the share of last turns whose route changes when the policies are shuffled."""
    rng = np.random.default_rng(seed)
    changed = []
    for dialogue in dialogues:
        shuffled = [dialogue.policies[i] for i in rng.permutation(len(dialogue.policies))]
        before = backend.choose(dialogue.policies, dialogue.turns).route
        changed.append(backend.choose(shuffled, dialogue.turns).route != before)
    return float(np.mean(changed))


def best_tau(matcher: PolicyMatcher, dialogues: Sequence[Dialogue]) -> float:
    """Return the threshold, in steps of 0.01, that routes most last turns of ``dialogues`` right.

    Give dialogues over training subjects, never those to be measured on.
    """
    taus_T = np.arange(-0.2, 0.51, 0.01)
    right_T = np.zeros(len(taus_T))
    for dialogue in dialogues:
        scores = dict(matcher.choose(dialogue.policies, dialogue.turns).scores)
        scores.pop(OTHER)
        top = max(scores, key=lambda name: scores[name])
        is_over_T = scores[top] > taus_T
        right_T += np.where(is_over_T, top, OTHER) == dialogue.routes[-1]
    return round(float(taus_T[right_T.argmax()]), 2)
