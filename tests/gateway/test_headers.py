from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.call import Call, Phases
from crossroads.gateway.contracts import Attempt, Choice, Kept, Tally
from crossroads.gateway.headers import answer_headers, cache_headers, choice_headers, phase_headers

CALL = Call(dialect="chat", model="auto", body={"messages": []})


def found(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in headers}


@given(st.text(), st.text(min_size=1), st.dictionaries(st.text(), st.text(), max_size=3))
def test_no_text_of_anybody_can_end_a_header(
    reason: str, model: str, labels: dict[str, str]
) -> None:
    choice = Choice(model=model, reason=reason, policy=reason or "p", labels=labels)
    for _, value in choice_headers(CALL, choice):
        assert all(0x20 <= byte <= 0x7E for byte in value)
        assert len(value) <= 300


def test_a_choice_by_chance_says_how_probable_it_was() -> None:
    assert "x-crossroads-propensity" not in found(choice_headers(CALL, Choice(model="m")))
    shown = found(choice_headers(CALL, Choice(model="m", propensity=0.125)))
    assert shown["x-crossroads-propensity"] == "0.125000"


def test_attempts_and_models_given_up_are_counted() -> None:
    tally = Tally(attempts=[Attempt("a", 500), Attempt("a", 500), Attempt("b", 200)])
    shown = found(answer_headers(CALL, tally, 0.0000123))
    assert (shown["x-crossroads-attempts"], shown["x-crossroads-fallbacks"]) == ("3", "1")
    assert shown["x-crossroads-cost-usd"] == "0.0000123"
    assert "x-crossroads-fallbacks" not in found(answer_headers(CALL, Tally(), None))
    skipped = found(answer_headers(CALL, Tally(attempts=[Attempt("b", 200)], skipped=("a",)), None))
    assert (skipped["x-crossroads-attempts"], skipped["x-crossroads-fallbacks"]) == ("1", "1")


@pytest.mark.parametrize(("accepted", "word"), [(True, "accepted"), (False, "escalated")])
def test_the_verdict_of_a_cascade_is_told(accepted: bool, word: str) -> None:
    tally = Tally(verdict={"accepted": accepted, "reason": "it is\nso"})
    assert found(answer_headers(CALL, tally, None))["x-crossroads-verdict"] == f"{word}: it is so"


def test_an_answer_of_a_cache_costs_nothing_and_says_its_age() -> None:
    kept = Kept(model="m", dialect="chat", answer={}, kind="semantic", similarity=0.97, age_s=61.9)
    shown = found(cache_headers(CALL, kept))
    assert (shown["x-crossroads-cache"], shown["age"]) == ("semantic", "61")
    assert (shown["x-crossroads-similarity"], shown["x-crossroads-cost-usd"]) == ("0.9700", "0")


def test_the_phases_add_up_to_the_total() -> None:
    phases = Phases(queue=0.001, route=0.002, connect=0.003, upstream=0.004)
    phases.started -= 0.02
    shown = found(phase_headers(phases))
    parts = [float(part.split("dur=")[1]) for part in shown["server-timing"].split(",")]
    assert sum(parts) == pytest.approx(float(shown["openai-processing-ms"]), abs=1)
    assert float(shown["x-crossroads-overhead-ms"]) == pytest.approx(
        parts[0] + parts[1] + parts[4], abs=0.01
    )


def test_calls_that_share_a_choice_differ_by_their_decision_alone() -> None:
    choice = Choice(model="m", policy="p", labels={"rule": "r"})
    other = Call(dialect="chat", model="auto", body={"messages": []})
    first, second = found(choice_headers(CALL, choice)), found(choice_headers(other, choice))
    assert first.pop("x-crossroads-decision-id") == CALL.id
    assert second.pop("x-crossroads-decision-id") == other.id
    assert first == second
    assert (first["x-crossroads-model"], first["x-crossroads-labels"]) == ("m", "rule=r")
