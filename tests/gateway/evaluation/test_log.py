from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crossroads.core.errors import InputError
from crossroads.gateway.evaluation import build_log, rewards_of
from crossroads.gateway.ledger import Feedback
from tests.gateway.ledger.records import record

EXPLORED = {"propensity": 0.1, "probabilities": {"small": 0.9, "large": 0.1}, "chosen": "large"}


def judged(decision_id: str, score: float | None = None, **changes: Any) -> Feedback:
    return Feedback(decision_id=decision_id, score=score, **changes)


def test_the_latest_judgement_of_each_source_counts_and_sources_are_averaged() -> None:
    feedback = [
        judged("d1", 0.0, source="user", time=2.0),
        judged("d1", 1.0, source="user", time=1.0),  # earlier, though it comes later
        judged("d1", 0.5, source="judge", time=1.0),
        judged("d2", preference="over", other="d1"),
    ]
    assert rewards_of(feedback) == {"d1": 0.25, "d2": 1.0}
    assert rewards_of(feedback, kind="score") == {"d1": 0.25}
    assert rewards_of(feedback, kind="preference") == {"d2": 1.0}


def test_rows_become_arrays() -> None:
    rows = [record("d1", session="s"), record("d2", **EXPLORED), record("d3", propensity=0.5)]
    log = build_log(rows, {"d1": 1.0, "d2": 0.0, "d3": 0.5})
    assert log.models == ("large", "small")
    assert log.action.tolist() == [1, 0, 1]
    assert log.propensity.tolist() == [1.0, 0.1, 0.5]
    assert log.reward.tolist() == [1.0, 0.0, 0.5]
    np.testing.assert_allclose(log.probability[:2], [[0, 1], [0.1, 0.9]])
    assert np.isnan(log.probability[2]).all()  # only the propensity is known
    np.testing.assert_allclose(log.price[0], [0.01, 0.001])
    assert log.session.tolist() == ["s", "d2", "d3"]


def test_the_choice_counts_not_the_fallback_that_answered() -> None:
    log = build_log([record("d1", chosen="small", model="large")], {"d1": 1.0})
    assert log.models[log.action[0]] == "small"


def test_what_is_left_out_is_counted() -> None:
    rows = [
        record("d1"),
        record("d2", policy="direct"),
        record("d3", cache="exact"),
        record("d4"),
        record("d5", policy="other"),
        record("d6", policy="", chosen="", status=401),
    ]
    log = build_log(rows, {"d1": 1.0}, policy="auto")
    assert len(log) == 1
    assert log.dropped == {
        "named their model": 1,
        "decided by no policy": 1,
        "answered by a cache": 1,
        "not judged": 1,
        "of other policies": 1,
    }
    assert log.num_calls == {"small": 2}


def test_calls_on_which_the_policy_had_no_choice_are_left_out() -> None:
    rows = [
        record("d1"),
        record("d2", labels={"degraded": "route-budget"}),
        record("d3", labels={"eligible": "1 of 2"}),
        record("d4", labels={"eligible": "10 of 12"}),
    ]
    log = build_log(rows, None)
    assert log.decision_id.tolist() == ["d1", "d4"]
    assert log.dropped == {
        "decided by a fallback, without the router": 1,
        "that one model alone might answer": 1,
    }


def test_a_call_names_the_models_that_might_answer() -> None:
    some = record("d1", labels={"eligible": "2 of 3"}, scores={"small": 0.5, "large": 0.8})
    every = {"scores": {"small": 0.5, "medium": 0.6, "large": 0.8}}
    log = build_log([some, record("d2", **every)], None)
    assert log.models == ("large", "medium", "small")
    assert log.eligible is not None
    assert log.eligible.tolist() == [[True, False, True], [True] * 3]
    assert log.take(np.array([1])).eligible.tolist() == [[True] * 3]  # type: ignore[union-attr]
    assert build_log([record("d2", **every)], None).eligible is None


def test_without_feedback_completeness_is_a_reward() -> None:
    rows = [record("d1"), record("d2", is_complete=False, status=503)]
    assert build_log(rows, None).reward.tolist() == [1.0, 0.0]


def test_nothing_to_learn_from_is_said_with_the_reason() -> None:
    with pytest.raises(InputError, match="1 not judged"):
        build_log([record("d1")], {})


@pytest.mark.parametrize("propensity", [0.0, -0.1, 1.5, float("nan")])
def test_a_row_with_a_propensity_outside_its_range_is_left_out(propensity: float) -> None:
    log = build_log([record("d1", propensity=propensity), record("d2")], None)
    assert log.decision_id.tolist() == ["d2"]
    assert log.dropped == {"with a propensity outside (0, 1]": 1}
    assert log.num_calls == {"small": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"propensity": 0.9},
        {"probabilities": {"small": 0.5, "large": 0.1}},
        {"probabilities": {"small": 1.0}, "propensity": 1e-5},
        {"probabilities": {"small": 1.1, "large": -0.1}},
        {"probabilities": {"small": None, "large": 0.1}},
    ],
    ids=["contradicts", "sum", "lacks the chosen", "negative", "no number"],
)
def test_a_row_whose_probabilities_cannot_be_is_left_out(wrong: Any) -> None:
    log = build_log([record("d1", **{**EXPLORED, **wrong}), record("d2", **EXPLORED)], None)
    assert log.decision_id.tolist() == ["d2"]
    assert log.dropped == {"with probabilities that do not add up": 1}


def test_embeddings_are_used_only_where_every_call_has_one() -> None:
    vector = np.array([1.0, -0.5], dtype="<f2").tobytes()
    both = build_log([record("d1", features=vector), record("d2", features=vector)], None)
    assert both.features is not None
    np.testing.assert_allclose(both.features, [[1.0, -0.5]] * 2)
    assert build_log([record("d1", features=vector), record("d2")], None).features is None
