"""Hashes of source."""

from __future__ import annotations

from pathlib import Path

from crossroads.core.fingerprints import code_fingerprint, hash_of_modules, hash_of_sources


def test_names_and_contents_count_and_other_files_do_not(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    (room / "a.py").write_text("a", "utf-8")
    first = hash_of_sources(tmp_path, ["room"])
    (room / "notes.txt").write_text("no code", "utf-8")
    (tmp_path / "other.py").write_text("elsewhere", "utf-8")
    assert hash_of_sources(tmp_path, ["room"]) == first
    (room / "a.c").write_text("int a;", "utf-8")
    with_c = hash_of_sources(tmp_path, ["room"])
    assert with_c != first
    (room / "a.c").unlink()
    (room / "a.py").rename(room / "b.py")
    renamed = hash_of_sources(tmp_path, ["room"])
    (room / "b.py").write_text("b", "utf-8")
    assert len({first, renamed, hash_of_sources(tmp_path, ["room"])}) == 3


def test_parts_of_the_package_have_their_own_hashes() -> None:
    assert code_fingerprint("moe") != code_fingerprint("adapters") != code_fingerprint("core")
    assert code_fingerprint("moe") == code_fingerprint("moe")


def test_the_files_of_classes_and_functions_count() -> None:
    assert hash_of_modules([Path]) != hash_of_modules([Path, hash_of_sources])
    assert hash_of_modules([hash_of_sources]) == hash_of_modules([hash_of_modules])
