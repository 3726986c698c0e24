"""Optional C files: built on request, found afterwards, left alone when they are broken."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
from pathlib import Path

import pytest

from crossroads.core import native
from crossroads.core.errors import UnavailableError
from crossroads.core.native import VARIABLE, Source

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler here"
)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "built"))
    path = tmp_path / "half.c"
    path.write_text("int half(int n) { return n / 2; }\n", "utf-8")
    return Source(path)


@needs_compiler
@pytest.mark.parametrize("library", [ctypes.CDLL, ctypes.PyDLL])
def test_what_was_built_is_found(source: Source, library: type[ctypes.CDLL]) -> None:
    assert source.load() is None  # looking builds nothing
    assert source.build() == source.built_path()
    loaded = source.load(library)
    assert loaded is not None
    assert loaded.half(42) == 21


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--bogus"], 2), (["x"], 2)])
def test_the_command_compiles_only_when_asked_to(
    source: Source, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    with pytest.raises(SystemExit) as left:
        source.main("half.kernels", arguments)
    assert left.value.code == code
    told = capsys.readouterr()
    assert "usage: python -m half.kernels" in (told.err if code else told.out)
    assert not source.is_built()


@needs_compiler
def test_a_changed_source_or_flag_is_another_file(source: Source) -> None:
    built = source.build()
    assert Source(source.path, ("-DFAST",)).built_path() != built
    source.path.write_text("int half(int n) { return n >> 1; }\n", "utf-8")
    assert source.built_path() != built
    assert source.load() is None


@needs_compiler
@pytest.mark.parametrize("kept", [0, 31, 1000, -1])
def test_a_damaged_file_is_named_left_and_built_again(
    source: Source, caplog: pytest.LogCaptureFixture, kept: int
) -> None:
    path = source.build()
    damaged = path.read_bytes()[:kept]
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert source.load() is None
    assert f"{path} is not used: it is damaged" in caplog.text
    assert path.read_bytes() == damaged
    assert not source.is_built()
    source.build()
    assert source.is_built()


@needs_compiler
@pytest.mark.parametrize("of", ["file", "folder"])
def test_what_others_may_write_is_not_loaded(
    source: Source, caplog: pytest.LogCaptureFixture, of: str
) -> None:
    path = source.build()
    assert path.parent.stat().st_mode & 0o077 == 0
    open_to_all = path if of == "file" else path.parent
    open_to_all.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert source.load() is None
    assert f"others may write {open_to_all}" in caplog.text


@needs_compiler
@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root gives files away")
def test_what_belongs_to_somebody_else_is_not_loaded(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    path = source.build()
    os.chown(path, 65534, 65534)
    with caplog.at_level(logging.WARNING):
        assert source.load() is None
    assert "belongs to somebody else" in caplog.text


@needs_compiler
def test_another_processor_is_another_file(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    here = source.built_path()
    monkeypatch.setattr(native, "_features", lambda: "flags: abacus")
    assert source.built_path() != here


@needs_compiler
def test_a_compiler_may_have_options(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc -DTWICE=1")
    source.path.write_text("int half(int n) { return TWICE * n; }\n", "utf-8")
    source.build()
    loaded = source.load()
    assert loaded is not None
    assert loaded.half(4) == 4


@needs_compiler
def test_a_compiler_that_hangs_is_not_waited_for(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = tmp_path / "hanging"
    hanging.write_text("#!/bin/sh\nexec sleep 60\n", "utf-8")
    hanging.chmod(0o755)
    monkeypatch.setenv("CC", str(hanging))
    monkeypatch.setattr(native, "_PATIENCE_S", 0.1)
    with pytest.raises(UnavailableError, match=r"could not build half\.c within"):
        source.build()


def test_the_command_line_prints_where_or_why_not(
    source: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert source.main("half.kernels", []) == 1
    assert "no C compiler" in capsys.readouterr().err
    monkeypatch.delenv("CC")
    if shutil.which("cc"):
        assert source.main("half.kernels", []) == 0
        assert capsys.readouterr().out == f"{source.built_path()}\n"


def test_a_build_that_cannot_be_says_why(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "absent"))
    with pytest.raises(UnavailableError, match="install gcc or clang"):
        source.build()
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho 'unknown option' >&2\nexit 1\n", "utf-8")
    failing.chmod(0o755)
    monkeypatch.setenv("CC", str(failing))
    with pytest.raises(UnavailableError, match=r"failing could not build half\.c: unknown option"):
        source.build()
    assert list((tmp_path / "built").iterdir()) == []
    monkeypatch.setenv(VARIABLE, str(source.path / "below"))
    with pytest.raises(UnavailableError, match="nothing can be built there"):
        source.build()
    monkeypatch.setenv(VARIABLE, "off")
    assert source.built_path() is None
    with pytest.raises(UnavailableError, match="unset it"):
        source.build()
