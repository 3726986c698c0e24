from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crossroads.adapters.task_level.files import read_lessons, read_tasks
from crossroads.core.errors import InputError
from tests.adapters.collection.toys import tokenizer

GOOD = {"task": "words", "prompt": "a b", "answer": " c"}


def _file(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), "utf-8")
    return path


def test_rows_become_tasks_in_their_order(tmp_path: Path) -> None:
    other = {"task": "sums", "prompt": "1 1", "answer": " 2", "options": [" 2", " 3"]}
    tasks = read_tasks(_file(tmp_path, other, "", GOOD, GOOD), ["words"], length=9)
    assert [(task.name, task.held_in, task.length) for task in tasks] == [
        ("sums", False, 9), ("words", True, 9),
    ]  # fmt: skip
    assert tasks[0].has_options and tasks[0].rows["test"][0].right == 0
    assert len(tasks[1].rows["test"]) == 1  # a row that is there twice is one row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: no JSON"),
        ([1], "line 2: expected an object, got list"),
        ({**GOOD, "answer": ""}, "line 2: answer: expected a text, got ''"),
        ({"task": "t", "answer": "b"}, "line 2: prompt: expected a text, got None"),
        ({**GOOD, "options": " c"}, "line 2: options: expected a list of texts"),
        ({**GOOD, "options": [" d"]}, "line 2: options: the answer ' c' is not among them"),
    ],
)
def test_wrong_rows_are_refused_by_line(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_tasks(_file(tmp_path, GOOD, row), [], length=9)


def test_files_without_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no rows"):
        read_tasks(_file(tmp_path, ""), [], length=9)
    with pytest.raises(InputError, match="cannot be read"):
        read_tasks(tmp_path / "nowhere", [], length=9)
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        read_tasks(tmp_path / "latin", [], length=9)


def test_lessons_are_as_long_as_their_longest_row(tmp_path: Path) -> None:
    rows = [{"task": "words", "prompt": "a " * n, "answer": " b"} for n in (3, 7, 40)]
    found = read_lessons(_file(tmp_path, *map(json.dumps, rows)), ["words"], tokenizer(), most=16)
    assert [(one.name, one.held_in, one.length, one.batch) for one in found] == [
        ("words", True, 8, 64)
    ]
    assert len(found[0].rows["train"]) == 2 and found[0].rows["test"] == ()
