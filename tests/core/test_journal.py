"""A journal keeps whole lines, whatever happened while it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crossroads.core.errors import InputError
from crossroads.core.journal import append_line, read_lines


def number(entry: Any) -> int:
    return int(entry["n"])


def test_what_was_appended_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    assert read_lines(path, number, remedy="-") == []
    for n in range(3):
        append_line(path, {"n": n, "text": "a\nb\u2028c"})
    assert read_lines(path, number, remedy="-") == [0, 1, 2]


def test_a_torn_last_line_is_cut_off_and_the_next_entry_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    append_line(path, {"n": 1})
    with path.open("ab") as file:
        file.write(b'{"n": 2')
    assert read_lines(path, number, remedy="-") == [1]
    append_line(path, {"n": 3})
    assert read_lines(path, number, remedy="-") == [1, 3]


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"m": 1}', b"null"])
def test_a_damaged_line_is_named_with_the_remedy(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"n": 1}\n' + line + b"\n")
    with pytest.raises(InputError, match=r"j\.jsonl: line 2 is damaged; delete it"):
        read_lines(path, number, remedy="delete it")


def test_a_disk_that_takes_nothing_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        append_line(tmp_path / "absent" / "j.jsonl", {"n": 1})
