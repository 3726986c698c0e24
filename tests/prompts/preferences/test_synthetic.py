from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts.preferences.policies import OTHER
from crossroads.prompts.preferences.subjects import DESCRIPTIONS, DOMAINS, FAMILY
from crossroads.prompts.preferences.synthetic import (
    DRIFT,
    SINGLE_TURN,
    TEST_WORDING,
    TRAIN_WORDING,
    Recipe,
    draw_dialogues,
)

PROMPTS = {subject: [f"{subject}?\nA. yes\nB. no\nAnswer:"] for subject in DOMAINS}


@given(seed=st.integers(0, 10_000), recipe=st.sampled_from([Recipe(), SINGLE_TURN, DRIFT]))
def test_every_user_turn_has_a_route_on_offer_or_other(seed: int, recipe: Recipe) -> None:
    for dialogue in draw_dialogues(PROMPTS, recipe, np.random.default_rng(seed), 3):
        names = [policy.name for policy in dialogue.policies]
        assert len(set(names)) == len(names)
        assert {*dialogue.routes} <= {OTHER, *names}
        assert dialogue.turns[0].role == dialogue.turns[-1].role == "user"
        said = [turn for turn in dialogue.turns if turn.role == "user"]
        assert len(said) == dialogue.num_user_turns


@given(seed=st.integers(0, 10_000))
def test_coarse_policies_route_a_question_to_its_subject(seed: int) -> None:
    (dialogue,) = draw_dialogues(PROMPTS, SINGLE_TURN, np.random.default_rng(seed), 1)
    text, route = dialogue.turns[-1].content, dialogue.routes[-1]
    asked = max((subject for subject in DOMAINS if f"{subject}?" in text), key=len)
    offered = {policy.name for policy in dialogue.policies}
    assert route == (asked if asked in offered else OTHER)
    if route == OTHER:
        assert FAMILY[asked] not in {FAMILY[name] for name in offered}


@pytest.mark.parametrize("recipe", [Recipe(), SINGLE_TURN])
def test_a_fifth_of_the_conversations_is_other(recipe: Recipe) -> None:
    rng = np.random.default_rng(0)
    last = [draw_dialogues(PROMPTS, recipe, rng, 1)[0].routes[-1] for _ in range(2000)]
    assert 0.16 < np.mean([route == OTHER for route in last]) < 0.24  # 4 standard errors


def test_made_up_names_leave_the_description() -> None:
    rng = np.random.default_rng(0)
    recipe = replace(SINGLE_TURN, neutral=1.0)
    (dialogue,) = draw_dialogues(PROMPTS, recipe, rng, 1)
    for policy in dialogue.policies:
        assert policy.name not in DESCRIPTIONS
        assert policy.description in DESCRIPTIONS.values()


def test_a_policy_with_an_action_has_a_rival_with_another() -> None:
    rng = np.random.default_rng(0)
    (dialogue,) = draw_dialogues(PROMPTS, replace(SINGLE_TURN, fine=1.0), rng, 1)
    actions = [policy.name.split("_")[0] for policy in dialogue.policies]
    assert len(dialogue.policies) == 6
    assert len({*actions[:-1]}) == 1
    assert actions[-1] != actions[0]


def test_training_and_test_share_no_words_of_thanks_and_no_follow_up() -> None:
    assert not {*TRAIN_WORDING.thanks} & {*TEST_WORDING.thanks}
    assert not {*TRAIN_WORDING.followups} & {*TEST_WORDING.followups}


def test_every_subject_has_a_description_and_a_family() -> None:
    assert len(DESCRIPTIONS) == 57
    assert {*FAMILY} == {*DESCRIPTIONS}
