"""One decision as a record."""

from __future__ import annotations

import json
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.decision import Decision
from crossroads.core.errors import InputError

NO_DEADLINE = settings(deadline=None)  # the machine may be busy


def a_decision(**changes) -> Decision:
    values = {
        "chosen": ("small", "large"),
        "scores": {"small": 0.8, "large": 0.7},
        "rule": "tradeoff:0.5",
        "reason": "cheapest of the good ones",
        "propensity": 1.0,
        "predicted_quality": 0.8,
        "predicted_cost_usd": None,
        "confidence": 0.1,
        "seconds": 1e-4,
        "router": "knn",
        "version": "1",
        "seed": 3,
        "details": {"neighbours": [1, 2], "note": {"k": 2}},
    }
    return Decision(**{**values, **changes})


scalars = st.floats(allow_nan=False, allow_infinity=False)


@NO_DEADLINE
@given(
    st.lists(st.text(min_size=1), min_size=1, unique=True),
    st.dictionaries(st.text(), scalars),
    st.none() | scalars,
    st.text(),
    st.integers(),
)
def test_a_decision_survives_json(names, scores, cost, reason, seed) -> None:
    decision = a_decision(
        chosen=tuple(names), scores=scores, predicted_cost_usd=cost, reason=reason, seed=seed
    )
    assert Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision


def test_the_record_repeats_the_first_choice_and_shares_nothing_with_the_decision() -> None:
    scores = {"small": 0.8}
    record = a_decision(scores=MappingProxyType(scores)).to_dict()
    assert record["model"] == "small"
    record["scores"]["small"] = 0.0
    assert scores == {"small": 0.8}


def test_seed_and_details_may_be_absent_from_a_record() -> None:
    record = a_decision(seed=0, details={}).to_dict()
    del record["seed"], record["details"]
    assert Decision.from_dict(record) == a_decision(seed=0, details={})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": None}, "lacks key: rule"),
        ({"colour": "red"}, "unknown key: colour"),
        ({"chosen": "small"}, "'chosen' must be a list"),
        ({"chosen": []}, "'chosen' must be a list"),
        ({"scores": [0.8]}, "'scores' must be an object"),
    ],
)
def test_a_wrong_record_is_refused_by_the_key_that_is_wrong(changes, message) -> None:
    record = {**a_decision().to_dict(), **changes}
    record = {key: value for key, value in record.items() if key != "rule" or value is not None}
    with pytest.raises(InputError, match=message):
        Decision.from_dict(record)
