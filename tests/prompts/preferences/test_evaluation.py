from __future__ import annotations

from collections.abc import Sequence

from crossroads.prompts.preferences.backend import RouteChoice
from crossroads.prompts.preferences.conversation import Turn
from crossroads.prompts.preferences.evaluation import (
    accuracy_by_level,
    best_tau,
    draw_cases,
    last_turns,
    order_sensitivity,
)
from crossroads.prompts.preferences.matcher import PolicyMatcher
from crossroads.prompts.preferences.policies import OTHER, Policy
from crossroads.prompts.preferences.subjects import DOMAINS
from crossroads.prompts.preferences.synthetic import SINGLE_TURN, Dialogue

A, B = Policy(name="a", description="x"), Policy(name="b", description="y")


class First:
    """Answers the first policy offered, or what the last turn names."""

    name, version = "first", "1"

    def __init__(self, *, reads: bool) -> None:
        self.reads = reads

    def choose(self, policies: Sequence[Policy], turns: Sequence[Turn]) -> RouteChoice:
        route = turns[-1].content if self.reads else policies[0].name
        return RouteChoice(route=route, scores={route: 1.0})


def dialogue(*routes: str, said: Sequence[str] | None = None) -> Dialogue:
    turns = [t for text in said or routes for t in (Turn("user", text), Turn("assistant", "-"))]
    return Dialogue(policies=(A, B), turns=tuple(turns[:-1]), routes=routes)


def test_levels_count_turns_runs_of_one_route_and_whole_conversations() -> None:
    wrong_once = dialogue("a", "a", "b", said=["a", "b", "b"])
    found = accuracy_by_level(First(reads=True), [wrong_once, dialogue("b")])
    assert found == {"turn": 3 / 4, "span": 2 / 3, "conversation": 1 / 2}


def test_only_the_last_turn_counts_for_single_requests() -> None:
    cases = [dialogue("a", "b", said=["b", "b"]), dialogue("a", said=["b"])]
    assert last_turns(First(reads=True), cases) == [True, False]


def test_order_sensitivity_finds_a_back_end_that_prefers_the_first_place() -> None:
    cases = [dialogue("a")] * 40
    assert order_sensitivity(First(reads=True), cases, seed=0) == 0
    assert 0.2 < order_sensitivity(First(reads=False), cases, seed=0) < 0.8


def test_cases_share_route_sets_and_repeat_with_the_seed() -> None:
    prompts = {subject: [f"{subject}?"] for subject in DOMAINS}
    cases = draw_cases(prompts, SINGLE_TURN, route_sets=3, each=4, seed=1)
    assert len({case.policies for case in cases}) == 3
    assert cases == draw_cases(prompts, SINGLE_TURN, route_sets=3, each=4, seed=1)


def test_the_chosen_threshold_parts_what_is_covered_from_what_is_not() -> None:
    matcher = PolicyMatcher()
    policies = (Policy(name="travel", description="flights, hotels and trips"),)
    said = {"Book flights and hotels for my trip": "travel", "Prove the lemma on groups": OTHER}
    cases = [
        Dialogue(policies=policies, turns=(Turn("user", text),), routes=(route,))
        for text, route in said.items()
    ]
    assert last_turns(PolicyMatcher(tau=best_tau(matcher, cases)), cases) == [True, True]
