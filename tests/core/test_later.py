"""Values that are made when they are first read."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, replace

from crossroads.core.later import Deferred, Later, LaterMapping, unread


@dataclass(frozen=True, kw_only=True)
class Answer:
    flops: Later[float] = Later(0.0)  # noqa: RUF009 - a descriptor


def counting(calls: list[int], value: float = 2.0) -> Deferred[float]:
    def make() -> float:
        calls.append(1)
        return value

    return Deferred(make)


def test_a_field_reads_as_what_was_given() -> None:
    assert Answer().flops == 0.0
    assert Answer(flops=3.0).flops == 3.0
    assert replace(Answer(flops=3.0), flops=4.0) == Answer(flops=4.0)


def test_a_deferred_field_is_made_once_and_only_when_read() -> None:
    calls: list[int] = []
    answer = Answer(flops=counting(calls))
    handed_on = Answer(flops=unread(answer, "flops"))
    assert not calls
    assert answer.flops == handed_on.flops == answer.flops == 2.0
    assert calls == [1]


def test_copies_and_pickles_hold_the_value() -> None:
    answer = Answer(flops=counting([]))
    assert copy.deepcopy(answer) == Answer(flops=2.0)
    closed_over: list[int] = []
    made = Answer(flops=counting(closed_over))
    assert pickle.loads(pickle.dumps(made)).flops == 2.0
    assert closed_over == [1]


def test_a_mapping_is_made_when_first_read() -> None:
    calls: list[int] = []

    def make() -> dict[str, int]:
        calls.append(1)
        return {"a": 1}

    found = LaterMapping(make)
    assert not calls
    assert found["a"] == 1 and dict(found) == {"a": 1} == found and len(found) == 1
    assert found | {"b": 2} == {"a": 1, "b": 2} == {"b": 2} | found
    assert repr(found) == "{'a': 1}" and pickle.loads(pickle.dumps(found)) == {"a": 1}
    assert calls == [1]
