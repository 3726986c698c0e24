from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.errors import ApiError
from crossroads.gateway.ledger import Feedback, parse_feedback, unknown_decision

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=5,
)


def test_a_score_and_a_preference_are_read() -> None:
    found = parse_feedback(
        {
            "decision_id": "dec_1",
            "score": 0.5,
            "preference": {"over": "dec_2"},
            "source": "judge",
            "comment": "short",
        },
        key_id="key-a",
    )
    assert (found.score, found.preference, found.other) == (0.5, "over", "dec_2")
    assert (found.source, found.comment, found.key_id) == ("judge", "short", "key-a")


@pytest.mark.parametrize(("side", "reward"), [("over", 1.0), ("under", 0.0)])
def test_a_preference_alone_is_a_reward(side: str, reward: float) -> None:
    found = parse_feedback({"decision_id": "dec_1", "preference": {side: "large"}})
    assert found.reward == reward


def test_true_and_false_are_scores() -> None:
    assert parse_feedback({"decision_id": "d", "score": True}).score == 1.0
    assert parse_feedback({"decision_id": "d", "score": False}).score == 0.0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ([], None),
        ({"score": 1}, "decision_id"),
        ({"decision_id": "", "score": 1}, "decision_id"),
        ({"decision_id": 7, "score": 1}, "decision_id"),
        ({"decision_id": "d"}, "score"),
        ({"decision_id": "d", "score": 1.2}, "score"),
        ({"decision_id": "d", "score": "good"}, "score"),
        ({"decision_id": "d", "score": float("nan")}, "score"),
        ({"decision_id": "d", "preference": {"beside": "x"}}, "preference"),
        ({"decision_id": "d", "preference": {"over": ""}}, "preference"),
        ({"decision_id": "d", "preference": "x"}, "preference"),
        ({"decision_id": "d", "score": 1, "source": 3}, "source"),
        ({"decision_id": "d", "score": 1, "comment": "x" * 10_001}, "comment"),
        ({"decision_id": "d", "score": 1, "stars": 5}, "stars"),
    ],
)
def test_a_wrong_body_is_answered_400_naming_the_field(body: Any, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        parse_feedback(body)
    assert caught.value.status == 400
    assert caught.value.param == param


def test_a_preference_names_a_decision_or_a_model_that_there_is() -> None:
    for name in ("dec_2", "large"):
        body = {"decision_id": "dec_1", "preference": {"over": name}}
        assert parse_feedback(body, models=["large"]).other == name
    body = {"decision_id": "dec_1", "preference": {"over": "xx"}}
    assert parse_feedback(body).other == "xx"  # nobody knows the models
    with pytest.raises(ApiError, match="'xx': neither a decision id") as caught:
        parse_feedback(body, models=["large"])
    assert (caught.value.status, caught.value.param) == (400, "preference")


@given(JSON)
def test_any_json_is_read_or_answered_400(body: Any) -> None:
    try:
        found = parse_feedback(body)
    except ApiError as error:
        assert error.status == 400
    else:
        assert 0 <= found.reward <= 1


def test_an_unknown_decision_is_answered_404() -> None:
    assert unknown_decision("dec_1").status == 404


def test_a_row_gives_the_judgement_back() -> None:
    given_one = Feedback(decision_id="dec_1", preference="under", other="large", comment="slow")
    assert Feedback.from_row(given_one.row()) == given_one
