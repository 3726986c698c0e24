from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.logs import inspect, zips
from crossroads.prompts.logs.zips import Members
from tests.prompts.logs.written import inspect_sample, write_inspect_eval

MIB = 1 << 20


def packed(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def read_all(path: Path) -> list[bytes]:
    with zipfile.ZipFile(path) as archive:
        inside = Members(archive, path)
        return [inside.read(name) for name in archive.namelist()]


@pytest.mark.parametrize("zstandard", [False, True])
def test_a_small_log_that_unpacks_to_too_much_is_one_error(
    tmp_path: Path, zstandard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zips, "MOST_MEMBER_BYTES", MIB)
    sample = inspect_sample("a", "C", input="a" * (2 * MIB))
    path = write_inspect_eval(tmp_path / "log.eval", [sample], zstandard=zstandard)
    assert path.stat().st_size < MIB // 10
    with pytest.raises(
        InputError, match=r"log\.eval: member 'samples/a_epoch_1\.json' unpacks to"
    ) as e:
        inspect.read_log(path)
    assert "\n" not in str(e.value)


def test_members_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "MOST_TOTAL_BYTES", 3 * MIB)
    path = packed(tmp_path / "a.zip", {f"m{n}": bytes(MIB) for n in range(3)})
    assert [len(content) for content in read_all(path)] == [MIB] * 3
    path = packed(tmp_path / "b.zip", {f"m{n}": bytes(MIB) for n in range(4)})
    with pytest.raises(InputError, match="member 'm3' unpacks to 1048576 bytes where 0 are left"):
        read_all(path)


def test_a_large_file_may_unpack_to_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "MOST_TOTAL_BYTES", 1)
    path = packed(tmp_path / "a.zip", {f"m{n}": bytes(MIB) for n in range(4)}, zipfile.ZIP_STORED)
    assert len(read_all(path)) == 4


@pytest.mark.parametrize("zstandard", [False, True])
def test_a_member_larger_than_it_says_is_stopped(tmp_path: Path, zstandard: bool) -> None:
    sample = inspect_sample("a", "C", input="a" * (8 * MIB))
    path = write_inspect_eval(tmp_path / "log.eval", [sample], zstandard=zstandard)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("samples/a_epoch_1.json")
        info.file_size = 1000
        told = "larger than it says" if zstandard else "Bad CRC-32"
        with pytest.raises(zipfile.BadZipFile, match=told):
            Members(archive, path).read(info.filename)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_cannot_be_unpacked_in_portions_are_refused(
    tmp_path: Path, method: int
) -> None:
    path = packed(tmp_path / "log.eval", {"header.json": b"{}"}, method)
    with pytest.raises(InputError, match=f"not a readable zip archive .*method {method}"):
        inspect.read_log(path)
