from __future__ import annotations

from functools import cache

import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.embedded import embedded_pool, load_embedded
from crossroads.prompts.fitted import FittedRouter, fit_router
from crossroads.prompts.tryage.flagged import route_flagged
from crossroads.prompts.tryage.flags import FLAG_WEIGHT, FLAGS
from crossroads.prompts.tryage.goals import GOALS

QUESTION = "Which enzyme unwinds DNA during replication?"


@cache
def router() -> FittedRouter:
    table = load_embedded("small").take(slice(0, 400))
    return fit_router("tryage", table, pool=embedded_pool("small"))


def parameters(name: str) -> float:
    known = router().pool[name].parameters
    assert known is not None
    return known


def test_without_flags_the_router_decides_as_always() -> None:
    found = route_flagged(router(), QUESTION)
    assert found.decision.model == router().route(QUESTION).model
    assert found.prompt == QUESTION
    assert not found.weights


def test_asking_hard_for_a_small_model_gives_the_smallest() -> None:
    found = route_flagged(router(), f"[lambda size=100] {QUESTION}")
    assert found.prompt == QUESTION
    assert parameters(found.decision.model) == min(parameters(m) for m in router().models)


def test_a_flag_is_a_preference_of_its_weight() -> None:
    flag, number = (route_flagged(router(), f"{mark} {QUESTION}")
                    for mark in ("[Flag: cheapest]", "[lambda cost=1]"))  # fmt: skip
    assert flag.decision.model == number.decision.model
    assert flag.weights == number.weights == {"cost": FLAG_WEIGHT}


def test_the_choice_does_not_see_the_flag() -> None:
    weighed = route_flagged(router(), f"[lambda size=0] {QUESTION}")
    assert weighed.decision.model == router().route(QUESTION, rule="argmax").model


def test_own_goals_have_own_flags() -> None:
    names = router().pool.names
    goals = {**GOALS, "last": lambda pool: [len(pool) - n for n in range(len(pool))]}
    flags = {**FLAGS, "last one": ("last", 100.0)}
    found = route_flagged(router(), f"{QUESTION} [Flag: last one]", goals=goals, flags=flags)
    assert found.decision.model == names[-1]


def test_unknown_flags_are_refused_or_stay() -> None:
    with pytest.raises(UsageError, match="unknown flag 'polite'"):
        route_flagged(router(), f"[Flag: polite] {QUESTION}")
    kept = route_flagged(router(), f"[Flag: polite] {QUESTION}", on_unknown="ignore")
    assert kept.prompt.startswith("[Flag: polite]")
