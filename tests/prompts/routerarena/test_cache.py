from __future__ import annotations

from pathlib import Path

import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.routerarena.cache import ResponseCache


def test_answers_are_found_again_by_row_and_prompt(tmp_path: Path) -> None:
    cache = ResponseCache(tmp_path, "vendor/model:1")
    cache.put("Q_1", "What?", {"generated_answer": "that"})
    again = ResponseCache(tmp_path, "vendor/model:1")
    assert again.get("Q_1", "What?") == {"generated_answer": "that"}
    assert again.get("Q_1", "What else?") is None
    assert again.get("Q_2", "What?") is None
    assert len(again) == 1


def test_each_model_has_its_own_file(tmp_path: Path) -> None:
    ResponseCache(tmp_path, "a/b").put("Q_1", "What?", {"generated_answer": "x"})
    assert len(ResponseCache(tmp_path, "a_b")) == 0
    assert [path.parent for path in tmp_path.rglob("*.jsonl")] == [tmp_path]


def test_a_torn_last_line_is_dropped_and_written_again(tmp_path: Path) -> None:
    cache = ResponseCache(tmp_path, "m")
    cache.put("Q_1", "What?", {"generated_answer": "one"})
    with cache.path.open("ab") as file:
        file.write(b'{"index": "Q_2", "prompt_ha')
    again = ResponseCache(tmp_path, "m")
    assert len(again) == 1
    again.put("Q_2", "Who?", {"generated_answer": "two"})
    assert len(ResponseCache(tmp_path, "m")) == 2


@pytest.mark.parametrize("line", ["{}", '{"index": "Q_1", "prompt_hash": 1, "result": 3}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "m.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match="line 1 is damaged"):
        ResponseCache(tmp_path, "m")


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        ResponseCache(tmp_path / "file", "m").put("Q_1", "What?", {})
