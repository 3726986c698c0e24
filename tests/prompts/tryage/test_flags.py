from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import UsageError
from crossroads.prompts.tryage.flags import FLAG_WEIGHT, FLAGS, parse_flags

PLAIN = st.text(st.characters(exclude_characters="[]", exclude_categories=("Cs",)), max_size=60)
MARKS = {
    "[Flag: smallest model]": {"size": FLAG_WEIGHT},
    "[flag:RECENT]": {"recency": FLAG_WEIGHT},
    "[FLAG:  cheapest ]": {"cost": FLAG_WEIGHT},
    "[lambda size=0.5]": {"size": 0.5},
    "[Lambda size = 2, cost=1e-1]": {"size": 2.0, "cost": 0.1},
    "[lambda recency=0]": {"recency": 0.0},
}


@pytest.mark.parametrize(("mark", "weights"), MARKS.items())
@pytest.mark.parametrize("where", ["{} Sort a list.", "Sort {}a list.", "Sort a list. {}"])
def test_a_flag_is_read_and_taken_out(mark: str, weights: dict[str, float], where: str) -> None:
    found = parse_flags(where.format(mark + " "))
    assert found.prompt == "Sort a list."
    assert found.weights == weights


@given(PLAIN)
def test_a_prompt_without_brackets_is_returned_unchanged(text: str) -> None:
    found = parse_flags(text)
    assert found.prompt == text
    assert not found.weights


@given(PLAIN, PLAIN, st.sampled_from(sorted(MARKS)))
def test_only_the_flag_and_spaces_around_it_are_lost(left: str, right: str, mark: str) -> None:
    found = parse_flags(f"{left}{mark}{right}")
    assert re.sub(r"\s", "", found.prompt) == re.sub(r"\s", "", left + right)
    assert found.weights == MARKS[mark]


@given(st.text(alphabet="[]flagmbd: =size0.5\n", max_size=80))
def test_no_text_is_an_unexpected_error(text: str) -> None:
    left = parse_flags(text, on_unknown="ignore")
    assert left.weights or left.prompt == text
    try:
        parse_flags(text)
    except UsageError as refusal:
        assert "\n" not in str(refusal)


def test_lambda_stands_above_a_flag_wherever_it_is() -> None:
    for text in ("[lambda size=2] [Flag: smallest] x", "[Flag: smallest] [lambda size=2] x"):
        assert parse_flags(text).weights == {"size": 2.0}


def test_the_later_of_two_weights_counts() -> None:
    assert parse_flags("[lambda size=1] x [lambda size=3]").weights == {"size": 3.0}


def test_an_unknown_flag_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown flag 'recentt'; did you mean 'recent'") as found:
        parse_flags("[Flag: recentt] hello")
    assert all(flag in str(found.value) for flag in FLAGS)


def test_an_unknown_goal_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown goal 'weight'.*cost, recency, size"):
        parse_flags("[lambda weight=1] hello")


@pytest.mark.parametrize("number", ["", "much", "-1", "nan", "inf"])
def test_a_weight_that_is_no_number_from_zero_is_refused(number: str) -> None:
    with pytest.raises(UsageError, match=r"goal 'size': expected a weight >= 0"):
        parse_flags(f"[lambda size={number}] hello")


def test_what_is_not_understood_may_stay_in_the_prompt() -> None:
    text = "[Flag: friendly] [lambda x=1] keep; [Flag: recent] take"
    found = parse_flags(text, on_unknown="ignore")
    assert found.prompt == "[Flag: friendly] [lambda x=1] keep; take"
    assert found.weights == {"recency": FLAG_WEIGHT}


def test_code_with_lambdas_is_no_flag() -> None:
    text = "fix this: sorted(x, key=lambda size: size[0]) and [lambda: 0]"
    assert parse_flags(text).prompt == text


def test_own_flags_join_the_known_ones() -> None:
    flags = {**FLAGS, "polite": ("tone", 0.3)}
    assert parse_flags("[Flag: Polite] hi", flags=flags).weights == {"tone": 0.3}
    assert parse_flags("[lambda tone=1] hi", goals=("tone",)).weights == {"tone": 1.0}


def test_what_to_do_with_unknown_flags_is_one_of_two_words() -> None:
    with pytest.raises(UsageError, match="refuse or ignore, got 'skip'"):
        parse_flags("hi", on_unknown="skip")  # type: ignore[arg-type]
