from __future__ import annotations

from pathlib import Path

import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.collect import PartialFile


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "p.jsonl")
    partial.append({"cell": "a"})
    partial.path.write_bytes(b"oops\n" + partial.path.read_bytes())
    with pytest.raises(InputError, match="line 1 is damaged; delete that line"):
        partial.read()


def test_a_torn_last_line_is_cut_off_so_that_the_next_one_is_whole(tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "p.jsonl")
    assert partial.read() == {}
    partial.append({"cell": "a"})
    with partial.path.open("ab") as file:
        file.write(b'{"cell": "b"')
    assert set(partial.read()) == {"a"}
    partial.append({"cell": "c"})
    assert set(partial.read()) == {"a", "c"}
