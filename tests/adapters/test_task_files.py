from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crossroads.adapters.task_files import read_lessons, read_tasks
from crossroads.core.errors import InputError
from tests.adapters.collection.toys import tokenizer

GOOD = {"task": "words", "prompt": "a b", "answer": " c"}


def _file(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), "utf-8")
    return path


def test_rows_become_tasks_in_their_order(tmp_path: Path) -> None:
    other = {"task": "sums", "prompt": "1 1", "answer": " 2", "options": [" 2", " 3"]}
    tasks = read_tasks(_file(tmp_path, other, "", GOOD, GOOD), ["words"], tokenizer(), length=9)
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
        ({**GOOD, "optoins": [" c"]}, "line 2: unknown key 'optoins'; expected task, prompt"),
        ({**GOOD, "options": [" c"]}, "line 2: options: expected two different ones or more"),
        ({**GOOD, "options": [" c", " c"]}, "line 2: options: expected two different ones"),
        ({**GOOD, "options": [" d"]}, "line 2: options: the answer ' c' is not among them"),
    ],
)
def test_wrong_rows_are_refused_by_line(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_tasks(_file(tmp_path, GOOD, row), [], tokenizer(), length=9)


def test_files_without_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no rows"):
        read_tasks(_file(tmp_path, ""), [], tokenizer(), length=9)
    with pytest.raises(InputError, match="nowhere: no such file; give"):
        read_tasks(tmp_path / "nowhere", [], tokenizer(), length=9)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_tasks(tmp_path, [], tokenizer(), length=9)
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        read_tasks(tmp_path / "latin", [], tokenizer(), length=9)


def test_rows_that_do_not_count_are_told_by_line(tmp_path: Path) -> None:
    long = {**GOOD, "prompt": "a " * 9}
    many = {**GOOD, "options": [" c", " d" * 9]}  # as long as its longest option
    said: list[str] = []
    path = _file(tmp_path, GOOD, long, GOOD, many)
    (task,) = read_tasks(path, [], tokenizer(), length=9, say=said.append)
    assert len(task.rows["test"]) == 1
    assert said == [
        f"{path}: 2 rows of more than 9 tokens left out, the first in line 2",
        f"{path}: 1 row left out that stood there before, the first in line 3",
    ]
    with pytest.raises(InputError, match=r"rows.jsonl: task t: no row has at most 9 .* line 2\)"):
        read_tasks(_file(tmp_path, GOOD, {**long, "task": "t"}), [], tokenizer(), length=9)


def test_a_text_may_hold_other_ends_of_lines(tmp_path: Path) -> None:
    line = json.dumps({**GOOD, "prompt": "a \u2028 b"}, ensure_ascii=False)
    (task,) = read_tasks(_file(tmp_path, line), [], tokenizer(), length=9)
    assert task.rows["test"][0].prompt == "a \u2028 b"


def test_lessons_are_as_long_as_their_longest_row(tmp_path: Path) -> None:
    rows = [{"task": "words", "prompt": "a " * n, "answer": " b"} for n in (3, 7, 40)]
    found = read_lessons(_file(tmp_path, *map(json.dumps, rows)), ["words"], tokenizer(), most=16)
    assert [(one.name, one.held_in, one.length, one.batch) for one in found] == [
        ("words", True, 8, 64)
    ]
    assert len(found[0].rows["train"]) == 2 and found[0].rows["test"] == ()
