from __future__ import annotations

import os
from pathlib import Path

import pytest

from crossroads.prompts.scorers.workspace import MOST_ENTRIES, is_too_large, workspace


def test_a_folder_is_too_large_by_bytes_and_by_entries() -> None:
    with workspace() as folder:
        (folder / "a").mkdir()
        assert not is_too_large(folder)
        for number in range(20):
            (folder / "a" / str(number)).write_bytes(os.urandom(1 << 20))
        assert is_too_large(folder)
    with workspace() as folder:
        for number in range(MOST_ENTRIES + 1):
            (folder / str(number)).touch()
        assert is_too_large(folder)


def test_an_empty_file_of_great_length_is_not_large() -> None:
    with workspace() as folder:
        with (folder / "sparse").open("wb") as file:
            file.truncate(1 << 30)
        assert not is_too_large(folder)


def test_links_out_of_the_folder_are_neither_measured_nor_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept", "utf-8")
    with workspace() as folder:
        (folder / "link").symlink_to(tmp_path)
        assert not is_too_large(folder)
    assert not folder.exists()
    assert (tmp_path / "kept").read_text("utf-8") == "kept"


@pytest.mark.slow
def test_a_deep_folder_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with workspace() as folder:
        os.chdir(folder)
        for _ in range(1200):
            Path("nested").mkdir()
            os.chdir("nested")
        Path("file").touch()
        os.chdir(tmp_path)
        assert is_too_large(folder)
    assert not folder.exists()


def test_a_folder_without_rights_is_removed() -> None:
    with workspace() as folder:
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "file").touch()
        (folder / "a" / "b").chmod(0)
        (folder / "a").chmod(0o300)
    assert not folder.exists()
