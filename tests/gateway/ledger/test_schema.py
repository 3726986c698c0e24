from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.contracts import Record
from crossroads.gateway.ledger.schema import decode, encoder
from tests.gateway.ledger.records import record

NAMES = st.text(st.characters(codec="utf-8"), max_size=20)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
BY_MODEL = st.dictionaries(NAMES, NUMBERS, max_size=4)
ATTEMPTS = st.lists(st.tuples(NAMES, st.integers(0, 599), NAMES, NUMBERS), max_size=3)

RECORDS = st.builds(
    Record,
    decision_id=st.uuids().map(lambda u: f"dec_{u.hex}"),
    request_id=NAMES,
    time=NUMBERS,
    key_id=NAMES,
    dialect=st.sampled_from(["chat", "responses", "messages", "completions", "embeddings"]),
    reason=NAMES,
    chosen=NAMES,
    model=NAMES,
    status=st.integers(0, 599),
    is_stream=st.booleans(),
    is_complete=st.booleans(),
    attempts=ATTEMPTS,
    propensity=NUMBERS,
    probabilities=BY_MODEL,
    scores=BY_MODEL,
    costs=BY_MODEL,
    is_explored=st.booleans(),
    features=st.none() | st.binary(min_size=1, max_size=64),
    confidence=st.none() | NUMBERS,
    predicted_cost_usd=st.none() | NUMBERS,
    input_tokens=st.integers(0, 2**62),
    cost_usd=NUMBERS,
    first_token_ms=st.none() | NUMBERS,
    labels=st.dictionaries(NAMES, NAMES, max_size=3),
    verdict=st.none() | st.fixed_dictionaries({"accepted": st.booleans(), "reason": NAMES}),
    prompt=st.none() | NAMES,
    answer=st.none() | NAMES,
)


@given(RECORDS)
def test_what_is_encoded_is_what_is_decoded(given_record: Record) -> None:
    row = encoder(["text", "answers", "features"])(given_record)
    assert decode(row) == given_record


def test_a_row_of_an_older_version_gets_the_defaults_of_what_it_lacks() -> None:
    row = list(encoder([])(record("dec_1")))
    row[-1] = '{"request_id": "req_1", "of_a_newer_version": 1}'
    old = decode(row)
    assert (old.decision_id, old.request_id) == ("dec_1", "req_1")
    assert (old.dialect, old.attempts, old.labels) == ("chat", [], {})


def test_what_json_cannot_hold_is_cleaned_or_refused() -> None:
    row = encoder([])(record("dec_1", reason="half \ud800", labels={"n": 2**70}))
    found = decode(row)
    assert found.reason == "half ?"
    assert found.labels == {"n": 2**63 - 1}
    with pytest.raises(TypeError):
        encoder([])(record("dec_1", labels={"a": object()}))


def test_contents_are_dropped_unless_asked_for() -> None:
    full = record(prompt="secret", answer="too", features=b"\x01\x02")
    nothing = decode(encoder([])(full))
    assert (nothing.prompt, nothing.answer, nothing.features) == (None, None, None)
    text = decode(encoder(["text"])(full))
    assert (text.prompt, text.answer, text.features) == ("secret", None, None)
