from __future__ import annotations

import signal
import subprocess
import sys
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


def enter(partial: PartialFile) -> None:
    with partial.held():
        raise AssertionError("held")


def test_a_file_is_held_once_at_a_time_and_no_lock_is_left(tmp_path: Path) -> None:
    first, second = (PartialFile(tmp_path / "p.jsonl") for _ in range(2))
    with first.held():
        with pytest.raises(InputError, match=r"p\.lock: another collection writes") as refused:
            enter(second)
        assert "\n" not in str(refused.value)
    with second.held():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_without_its_process_holds_nobody_up(tmp_path: Path) -> None:
    hold = (
        "import os, pathlib, sys\nfrom crossroads.prompts.collect.partial import PartialFile\n"
        "with PartialFile(pathlib.Path(sys.argv[1])).held():\n    os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "p.jsonl"
    killed = subprocess.run([sys.executable, "-c", hold, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.with_suffix(".lock").exists()
    with PartialFile(path).held():
        pass


def test_a_lock_in_a_folder_that_takes_none_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"p\.lock: cannot be locked: No such file"):
        enter(PartialFile(tmp_path / "missing" / "p.jsonl"))
