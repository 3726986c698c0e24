from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crossroads.core.errors import InputError
from crossroads.datasets import medqa_fr


def _written(folder: Path, *items: Any) -> Path:
    for part in ("train", "dev", "test"):
        content = json.dumps(list(items)).encode()
        (folder / f"{part}.json.gz").write_bytes(gzip.compress(content))
    return folder


def test_right_answers_are_places_among_the_choices(tmp_path: Path) -> None:
    answers = {"a": "un", "b": "deux", "c": "trois"}
    item = {"question": "Lesquels?", "answers": answers, "correct_answers": ["a", "c"]}
    (question,) = medqa_fr.load(_written(tmp_path, item)).valid
    assert [question.choices[place] for place in question.right] == ["un", "trois"]


def test_an_answer_that_is_no_choice_is_refused(tmp_path: Path) -> None:
    item = {"question": "?", "answers": {"a": "un"}, "correct_answers": ["e"]}
    with pytest.raises(InputError, match=r"train\.json\.gz: an item lacks"):
        medqa_fr.load(_written(tmp_path, item))


def test_the_published_counts_are_found(shared_folder: Callable[[str], Path]) -> None:
    found = medqa_fr.load(shared_folder("medqa_fr"))
    assert [len(part) for part in (found.train, found.valid, found.test)] == [2_171, 312, 622]
    assert sum(len(question.right) == 1 for question in found.train) == 595
    assert {len(question.choices) for question in found.test} == {5}
