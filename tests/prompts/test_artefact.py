from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError
from crossroads.prompts import artefact
from crossroads.prompts.artefact import (
    FORMAT_VERSION,
    HEADER,
    arrays_name,
    npz_arrays,
    npz_bytes,
    read_artefact,
    write_artefact,
)

STATE = {
    "weights": np.arange(6.0).reshape(2, 3),
    "names": np.array(["a", "bc"]),
    "none": np.zeros(0),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "router"
    write_artefact(place, {"fact": 1}, STATE)
    return place


def arrays_file(folder: Path) -> Path:
    return folder / arrays_name(json.loads((folder / HEADER).read_text()))


def test_what_is_written_reads_back(folder: Path) -> None:
    header, arrays = read_artefact(folder)
    assert header["fact"] == 1
    assert set(arrays) == set(STATE)
    for name, array in STATE.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def test_the_same_arrays_are_the_same_bytes() -> None:
    assert npz_bytes(STATE) == npz_bytes({name: array.copy() for name, array in STATE.items()})


def test_objects_are_refused_on_writing_and_on_reading(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle=False"):
        write_artefact(tmp_path / "router", {}, {"o": np.array([{}], dtype=object)})
    assert not list(tmp_path.iterdir())
    np.savez(tmp_path / "o.npz", o=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        npz_arrays((tmp_path / "o.npz").read_bytes())


@pytest.mark.parametrize("content", [b"", b"PK\3\4", pickle.dumps([1]), b"\x93NUMPY\1\0"])
def test_what_is_no_npz_file_is_one_kind_of_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        npz_arrays(content)


def test_an_older_artefact_is_replaced(folder: Path) -> None:
    write_artefact(folder, {"fact": 2}, {"only": np.ones(1)})
    header, arrays = read_artefact(folder)
    assert header["fact"] == 2
    assert set(arrays) == {"only"}
    assert [p.name for p in folder.parent.iterdir()] == ["router"]
    assert {p.name for p in folder.iterdir()} == {HEADER, arrays_file(folder).name}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    write_artefact(tmp_path, {}, STATE)
    assert {p.name for p in tmp_path.iterdir()} == {HEADER, arrays_file(tmp_path).name}


def test_parents_are_made(tmp_path: Path) -> None:
    write_artefact(tmp_path / "a" / "b", {}, STATE)
    assert read_artefact(tmp_path / "a" / "b")[0]["format_version"] == FORMAT_VERSION


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something else than a fitted router"):
        write_artefact(tmp_path, {}, STATE)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("header", ["{", "[]", "{}", '{"kind": "recipe"}'])
def test_a_folder_with_a_foreign_header_is_left_alone(header: str, tmp_path: Path) -> None:
    (tmp_path / HEADER).write_text(header)
    with pytest.raises(InputError, match="something else"):
        write_artefact(tmp_path, {}, STATE)
    assert (tmp_path / HEADER).read_text() == header


@pytest.mark.parametrize("damage", [b"", b'{"kind": "crossr', b"\0" * 99, b"\xff\xfe"])
def test_a_damaged_artefact_is_replaced(folder: Path, damage: bytes) -> None:
    (folder / HEADER).write_bytes(damage)
    with pytest.raises(InputError, match="fit the router again"):
        read_artefact(folder)
    write_artefact(folder, {"fact": 2}, {"only": np.ones(1)})
    assert read_artefact(folder)[0]["fact"] == 2
    assert {p.name for p in folder.iterdir()} == {HEADER, arrays_file(folder).name}


def test_an_artefact_with_files_of_the_user_is_left_alone(folder: Path) -> None:
    (folder / "notes.txt").touch()
    with pytest.raises(InputError, match="something else"):
        write_artefact(folder, {}, STATE)


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "router").write_text("text")
    with pytest.raises(InputError, match="a file stands there"):
        write_artefact(tmp_path / "router", {}, STATE)
    with pytest.raises(InputError, match="cannot be written"):
        write_artefact(tmp_path / "router" / "inner", {}, STATE)


STEPS = ("before the arrays", "before the header", "after the header", "while tidying")


def break_at(step: str, error: BaseException, patch: pytest.MonkeyPatch) -> None:
    replace, unlink = Path.replace, Path.unlink

    def failing_replace(self: Path, target: Path) -> Path:
        is_header = target.name == HEADER
        if step == ("before the header" if is_header else "before the arrays"):
            raise error
        done = replace(self, target)
        if is_header and step == "after the header":
            raise error
        return done

    def failing_unlink(self: Path, *, missing_ok: bool = False) -> None:
        if step == "while tidying":
            raise error
        unlink(self, missing_ok=missing_ok)

    patch.setattr(Path, "replace", failing_replace)
    patch.setattr(Path, "unlink", failing_unlink)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_one_whole_artefact(
    step: str, error: BaseException, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_at(step, error, patch)
        with pytest.raises((KeyboardInterrupt, InputError)):
            write_artefact(folder, {"fact": 2}, {"only": np.ones(1)})
    header, arrays = read_artefact(folder)
    is_new = header["fact"] == 2
    assert is_new == (step in STEPS[2:])
    assert set(arrays) == ({"only"} if is_new else set(STATE))
    write_artefact(folder, {"fact": 3}, {"third": np.ones(1)})
    assert {p.name for p in folder.iterdir()} == {HEADER, arrays_file(folder).name}


@pytest.mark.parametrize("step", STEPS[:2])
def test_an_interrupted_first_write_leaves_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_at(step, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            write_artefact(tmp_path / "router", {}, STATE)
    assert not list(tmp_path.iterdir())


def test_the_system_s_refusal_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_at(STEPS[0], OSError(28, "No space left on device"), monkeypatch)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        write_artefact(folder, {"fact": 2}, {"only": np.ones(1)})


@pytest.mark.parametrize("last", [1, 2])
def test_a_killed_writer_leaves_the_older_artefact_and_can_be_followed(
    last: int, folder: Path
) -> None:
    code = (
        "import os\nfrom pathlib import Path\nimport numpy as np\n"
        "from crossroads.prompts import artefact\n"
        "replace, calls = Path.replace, []\n"
        "def step(self, target):\n"
        "    calls.append(target)\n"
        f"    os._exit(9) if len(calls) == {last} else replace(self, target)\n"
        "Path.replace = step\n"
        f"artefact.write_artefact(Path({str(folder)!r}), {{}}, {{'a': np.ones(3)}})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    header, arrays = read_artefact(folder)
    assert header["fact"] == 1
    assert set(arrays) == set(STATE)
    write_artefact(folder, {"fact": 2}, {"only": np.ones(1)})
    assert {p.name for p in folder.iterdir()} == {HEADER, arrays_file(folder).name}


def test_what_a_killed_first_writer_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f"arrays-{'0' * 16}.npz").touch()
    (tmp_path / f".{HEADER}.partial").touch()
    assert f"no {HEADER} in it" in complaint(tmp_path)
    write_artefact(tmp_path, {}, STATE)
    assert {p.name for p in tmp_path.iterdir()} == {HEADER, arrays_file(tmp_path).name}


def test_a_reader_overtaken_by_a_writer_reads_the_newer_artefact(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes
    writes = [{"fact": 2}]

    def overtaken(self: Path) -> bytes:
        if writes:
            write_artefact(folder, writes.pop(), {"only": np.ones(1)})
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", overtaken)
    header, arrays = read_artefact(folder)
    assert header["fact"] == 2
    assert set(arrays) == {"only"}


@pytest.mark.parametrize("digest", [None, 3, "../../secret", "AB" * 32])
def test_a_hash_that_is_none_is_refused(digest: object, folder: Path) -> None:
    header = {**json.loads((folder / HEADER).read_text()), "arrays_sha256": digest}
    (folder / HEADER).write_text(json.dumps(header))
    assert "is no hash; fit the router again" in complaint(folder)


def complaint(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_artefact(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_folder_says_how_to_make_one(tmp_path: Path) -> None:
    assert "no such folder; make one with: crossroads fit" in complaint(tmp_path / "none")
    assert f"no {HEADER} in it" in complaint(tmp_path)


def test_missing_arrays_are_named(folder: Path) -> None:
    path = arrays_file(folder)
    path.unlink()
    assert f"{path.name} cannot be read (No such file or directory); fit" in complaint(folder)


def test_a_newer_format_names_both_versions(folder: Path) -> None:
    header = json.loads((folder / HEADER).read_text())
    header["format_version"] = FORMAT_VERSION + 4
    (folder / HEADER).write_text(json.dumps(header))
    message = complaint(folder)
    assert f"format {FORMAT_VERSION + 4}" in message
    assert f"up to {FORMAT_VERSION}" in message


@pytest.mark.parametrize("version", [0, -1, "one", None, 1.5, [1]])
def test_a_version_that_is_none_is_refused(version: object, folder: Path) -> None:
    header = {**json.loads((folder / HEADER).read_text()), "format_version": version}
    (folder / HEADER).write_text(json.dumps(header))
    assert "is no version" in complaint(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"null", b"[" * 100_000])
def test_a_damaged_header_is_refused(content: bytes, folder: Path) -> None:
    (folder / HEADER).write_bytes(content)
    assert HEADER in complaint(folder)


@given(st.data())
def test_any_damage_to_the_arrays_is_noticed(data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as parent:
        place = Path(parent) / "router"
        write_artefact(place, {}, STATE)
        path = arrays_file(place)
        content = bytearray(path.read_bytes())
        spot = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content = content[:spot]
        else:
            content[spot] ^= data.draw(st.integers(1, 255))
        path.write_bytes(bytes(content))
        assert "damaged or of another router" in complaint(place)


def test_arrays_that_match_their_hash_but_are_none_are_refused(folder: Path) -> None:
    import hashlib

    header = json.loads((folder / HEADER).read_text())
    header["arrays_sha256"] = hashlib.sha256(b"x").hexdigest()
    (folder / HEADER).write_text(json.dumps(header))
    arrays_file(folder).write_bytes(b"x")
    assert "is not readable" in complaint(folder)


def test_permissions_are_the_usual_ones(folder: Path) -> None:
    usual = folder.parent / "usual"
    usual.mkdir()
    assert folder.stat().st_mode == usual.stat().st_mode
    (usual / "file").touch()
    assert {p.stat().st_mode for p in folder.iterdir()} == {(usual / "file").stat().st_mode}
    assert artefact.KIND in (folder / HEADER).read_text()
