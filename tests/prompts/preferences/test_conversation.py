from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts.preferences.conversation import Turn, fit_conversation, read_turns

TURNS = st.lists(
    st.builds(Turn, st.sampled_from(["user", "assistant"]), st.text("ab", min_size=1, max_size=30)),
    max_size=8,
)


def talk(*lengths: int, first: str = "user") -> list[Turn]:
    """Turns of these lengths, user and assistant alternating."""
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [Turn(roles[n % 2], str(n) * length) for n, length in enumerate(lengths)]


def test_system_and_tool_messages_and_empty_contents_are_dropped() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]},
        {"role": "user", "content": "  "},
    ]
    assert read_turns(messages) == [Turn("user", "hello"), Turn("user", "a")]


@pytest.mark.parametrize("role", [["user"], {"user": 1}, 1, None])
def test_a_role_that_is_no_text_is_dropped_like_an_unknown_one(role: object) -> None:
    messages = [{"role": role, "content": "hello"}, {"role": "user", "content": "hi"}]
    assert read_turns(messages) == [Turn("user", "hi")]


def test_four_characters_count_as_a_token_and_the_limit_itself_fits() -> None:
    turns = talk(8, 8, 8)
    assert fit_conversation(turns, prompt_chars=16, most_tokens=10) == turns


def test_a_user_turn_that_overflows_is_kept_and_ends_the_walk() -> None:
    turns = talk(4, 4, 40, 4, 4)
    assert fit_conversation(turns, prompt_chars=0, most_tokens=5) == turns[2:]


def test_an_assistant_turn_that_overflows_ends_the_walk_and_is_dropped() -> None:
    turns = talk(4, 40, 4)
    assert fit_conversation(turns, prompt_chars=0, most_tokens=5) == turns[2:]


def test_the_last_turn_is_kept_even_if_nothing_fits() -> None:
    turns = talk(4, 400)
    assert fit_conversation(turns, prompt_chars=0, most_tokens=5) == turns[1:]


def test_the_default_limit_is_2048_tokens() -> None:
    turns = talk(4, 4092, 4096)
    assert fit_conversation(turns, prompt_chars=4) == turns
    assert fit_conversation(turns, prompt_chars=5) == turns[2:]


def test_a_conversation_that_does_not_start_or_end_with_the_user_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fit_conversation(talk(4, 4, first="assistant"), prompt_chars=0)
    fit_conversation(talk(4, 4), prompt_chars=0)
    assert [record.args for record in caplog.records] == [("first",), ("last",)]


@given(turns=TURNS, limit=st.integers(0, 40))
def test_what_is_kept_is_the_end_of_the_conversation_in_order(
    turns: list[Turn], limit: int
) -> None:
    kept = fit_conversation(turns, prompt_chars=0, most_tokens=limit)
    assert kept == turns[len(turns) - len(kept) :]
    assert bool(kept) == bool(turns)
