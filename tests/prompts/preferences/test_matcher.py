from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.preferences.backend import get_backend
from crossroads.prompts.preferences.conversation import Turn
from crossroads.prompts.preferences.matcher import PolicyMatcher, open_intent
from crossroads.prompts.preferences.policies import OTHER, Policy
from crossroads.prompts.preferences.synthetic import TEST_WORDING, TRAIN_WORDING

POLICIES = (
    Policy(name="programming", description="writing, explaining or mending computer code"),
    Policy(name="travel", description="flights, hotels, trips and places to visit"),
    Policy(name="cook's corner", description="recipes, ingredients and cooking"),
)
CODE = "Why does my Python function raise an index error in this loop?"
TRIP = "Which hotels near the airport in Lisbon should I book for my trip?"


@pytest.fixture(scope="module")
def matcher() -> PolicyMatcher:
    return PolicyMatcher()


def said(*texts: str) -> list[Turn]:
    """The user's texts, each but the last answered."""
    turns = [turn for text in texts for turn in (Turn("user", text), Turn("assistant", "Well."))]
    return turns[:-1]


@pytest.mark.parametrize(
    ("text", "route"),
    [(CODE, "programming"), (TRIP, "travel"), ("How long do I boil potatoes?", "cook's corner")],
)
def test_a_request_goes_to_the_policy_that_describes_it(
    matcher: PolicyMatcher, text: str, route: str
) -> None:
    choice = matcher.choose(POLICIES, said(text))
    assert choice.route == route
    assert choice.scores[OTHER] == matcher.tau


def test_the_latest_intent_wins(matcher: PolicyMatcher) -> None:
    assert matcher.choose(POLICIES, said(CODE, TRIP)).route == "travel"
    assert matcher.choose(POLICIES, said(TRIP, CODE)).route == "programming"


@pytest.mark.parametrize(
    "thanks",
    [
        *("Thanks!", "Okay, thank you.", "Great, that was it.", "Bye", "Thanks, will do"),
        *("Great help, thanks!", "no more, thanks", "Good, you did it", "Nothing else, thanks."),
        *("ok I get it now, thanks", "Thanks, I know what to do now", "Cool, that is what I like"),
        *TRAIN_WORDING.thanks,
        *TEST_WORDING.thanks,
    ],
)
def test_a_request_that_is_settled_is_other(matcher: PolicyMatcher, thanks: str) -> None:
    assert matcher.choose(POLICIES, said(CODE, thanks)).route == OTHER


@pytest.mark.parametrize(
    "text",
    [
        *("ok can you help me with this?", "Is this fine?", "All clear?", "ok, thanks, and this?"),
        *("good one, now tell me more about it", "good one now tell me more about it"),
        *("ok can you help me with this", "Thanks, but why", "Okay how come", "is it good"),
        *("Great, now the others", "good, more please", "Great.\nExplain that again", "ok go on"),
        *("cool, I would like more", "make it nice", "ok do it again", "That was not helpful"),
        *("fine; what about the rest", "Perfect, one more", "thank you, could you go on"),
    ],
)
def test_thanks_that_ask_on_are_follow_ups_of_what_was_asked(
    matcher: PolicyMatcher, text: str
) -> None:
    assert open_intent(said(CODE, text)) == CODE
    assert matcher.choose(POLICIES, said(TRIP, CODE, text)).route == "programming"


@pytest.mark.parametrize(
    "text", ["Is it good?", "Is it good", "Nice and clear", "ok can you help me with this?"]
)
def test_a_first_message_settles_nothing(text: str) -> None:
    assert open_intent(said(text)) == text
    assert open_intent(said(text, "And?")) == text


@pytest.mark.parametrize("thanks", ["Thanks!", "Okay, thank you.", "Bye"])
def test_nothing_but_thanks_is_other_even_where_all_before_it_was_cut_off(
    matcher: PolicyMatcher, thanks: str
) -> None:
    assert matcher.choose(POLICIES, said(thanks)).route == OTHER


def test_a_bare_follow_up_asks_what_was_asked_before(matcher: PolicyMatcher) -> None:
    assert matcher.choose(POLICIES, said(TRIP, CODE, "Why is that?", "And?")).route == "programming"
    assert open_intent(said("Why is that?")) == "Why is that?"


def test_thanks_with_a_new_request_is_a_request() -> None:
    text = f"Thanks! {TRIP}"
    assert open_intent(said(CODE, text)) == text


def test_what_no_policy_covers_is_other_by_the_threshold() -> None:
    assert PolicyMatcher(tau=1.0).choose(POLICIES, said(CODE)).route == OTHER
    assert PolicyMatcher(tau=-1.0).choose(POLICIES, said("Zebras yawn.")).route != OTHER


def test_an_example_draws_requests_like_it(matcher: PolicyMatcher) -> None:
    request = "My knees hurt on the stairs."
    joints = Policy(name="joints", description="arthritis", examples=(request,))
    choice = matcher.choose([*POLICIES, joints], said(request))
    assert choice.route == "joints"
    bare = Policy(name="joints", description="arthritis")
    assert (
        choice.scores["joints"] > matcher.choose([*POLICIES, bare], said(request)).scores["joints"]
    )


@given(order=st.permutations(POLICIES))
def test_the_order_of_policies_changes_nothing(matcher: PolicyMatcher, order: list[Policy]) -> None:
    assert matcher.choose(order, said(TRIP)) == matcher.choose(POLICIES, said(TRIP))


def test_a_policy_is_added_and_removed_without_fitting(matcher: PolicyMatcher) -> None:
    assert matcher.choose(POLICIES[:1], said(TRIP)).route != "travel"
    assert matcher.choose(POLICIES[:2], said(TRIP)).route == "travel"


def test_a_conversation_without_text_is_other(matcher: PolicyMatcher) -> None:
    assert matcher.choose(POLICIES, []).route == OTHER


def test_wrong_names_and_settings_of_back_ends_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'matcher'"):
        get_backend("macher")
    with pytest.raises(UsageError, match="option 'tua' is not one of matcher"):
        get_backend("matcher", tua=0.1)
    with pytest.raises(InputError, match=r"tau in \[-1, 1\]"):
        get_backend("matcher", tau=3)
