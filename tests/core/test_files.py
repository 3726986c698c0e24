"""Files appear whole or not at all."""

from __future__ import annotations

from errno import ENOENT, ENOSPC
from pathlib import Path

import pytest

from crossroads.core.errors import InputError
from crossroads.core.files import check_writable, replacing, unwritable, write_atomically


def test_writing_leaves_nothing_half_done(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.json"
    write_atomically(target, "one")
    write_atomically(target, "two")
    assert target.read_text() == "two"
    assert [p.name for p in target.parent.iterdir()] == ["file.json"]
    blocked = target / "under-a-file.json"
    with pytest.raises(InputError, match=r"under-a-file.json: cannot be written"):
        write_atomically(blocked, "three")


def test_the_remedy_fits_the_cause() -> None:
    full = str(unwritable(Path("x"), OSError(ENOSPC, "No space left on device")))
    assert full == "x: cannot be written: No space left on device; free the disk, or choose another"
    missing = str(unwritable(Path("x"), OSError(ENOENT, "No such file or directory")))
    assert "choose a place you can write to" in missing and "disk" not in missing


def test_a_failure_midway_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    write_atomically(target, "old")
    with pytest.raises(RuntimeError, match="midway"), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("midway")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_a_file_that_cannot_be_written_is_told_ahead_and_nothing_is_left(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.json"
    check_writable(target)
    assert [*target.parent.iterdir()] == []
    with pytest.raises(InputError, match="deep: cannot be written: it is a folder"):
        check_writable(target.parent)
    target.touch()
    with pytest.raises(InputError, match="below: cannot be written"):
        check_writable(target / "below")
    assert [p.name for p in target.parent.iterdir()] == ["file.json"]
