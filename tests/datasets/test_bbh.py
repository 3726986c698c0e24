from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.datasets import bbh

ROWS = [
    ("hyperbaton", "Which?\nOptions:\n(A) big (red) car\n(B) red big car", "(A)"),
    ("navigate", "Do you return?\nOptions:\n- Yes\n- No", "No"),
    ("web_of_lies", "Does Ann lie?", "No"),
    ("web_of_lies", "Does Bob lie?", "Yes"),
    *(("word_sorting", f"Sort {n}", str(n)) for n in range(4)),
]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    lines = [json.dumps({"task": t, "input": i, "target": a}) for t, i, a in ROWS]
    (tmp_path / "bbh.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return tmp_path


def test_choices_are_read_from_the_question_or_from_the_tasks_answers(small: Path) -> None:
    found = bbh.load(small)
    assert [q.choices for q in found[:4]] == [
        ("A", "B"), ("Yes", "No"), ("No", "Yes"), ("No", "Yes")]  # fmt: skip
    assert found[0].answer == "A"
    assert found[4].choices == ()


def test_tasks_are_chosen_by_name(small: Path) -> None:
    assert [q.text for q in bbh.load(small, tasks=["navigate"])] == [ROWS[1][1]]
    with pytest.raises(UsageError, match="did you mean 'navigate'"):
        bbh.load(small, tasks=["navigat"])


def test_a_row_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "bbh.jsonl.gz").write_bytes(gzip.compress(b'{"task": "a", "input": "b"}'))
    with pytest.raises(InputError, match=r"bbh\.jsonl\.gz: a row has no 'target'"):
        bbh.load(tmp_path)


def test_every_published_answer_is_among_its_choices(shared_folder: Callable[[str], Path]) -> None:
    found = bbh.load(shared_folder("bbh"))
    assert len(found) == 6_511
    assert len({q.task for q in found}) == 27
    assert all(q.answer in q.choices for q in found if q.choices)
    free = Counter(q.task for q in found if not q.choices)
    assert free == {
        "dyck_languages": 250, "multistep_arithmetic_two": 250, "object_counting": 250,
        "word_sorting": 250, "movie_recommendation": 1, "ruin_names": 2,
    }  # fmt: skip
