"""Optional C files: compiled on request, found afterwards, never needed.

A file is compiled in about a second by a C compiler (``cc``, or what ``CC`` names) into the user's
cache directory, or into the directory ``CROSSROADS_KERNELS`` names; every later process on this
machine finds it there. ``CROSSROADS_KERNELS=off`` leaves it unused. The name of what was built
carries a digest of source, flags and processor, so a changed one is never loaded; its last bytes
are a digest of those before, so a damaged one is neither. What others could have written is not
loaded: file and folder must be this user's or root's, and writable by nobody else.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from crossroads.core.errors import InputError, UnavailableError
from crossroads.core.files import replacing

_log = logging.getLogger(__name__)

_PATIENCE_S = 60  # for a compiler
VARIABLE = "CROSSROADS_KERNELS"
_ALWAYS = ("-O3", "-std=c11", "-fPIC", "-march=native")


@dataclass(frozen=True)
class Source:
    """A C file and how it is compiled.

    Attributes
    ----------
    path : the file; what is built is named after its stem
    flags : of the compiler, beyond those every file gets
    """

    path: Path
    flags: tuple[str, ...] = ()

    def built_path(self) -> Path | None:
        """Return where the built file is or would be, None where it is switched off."""
        where = os.environ.get(VARIABLE, "")
        if where == "off":
            return None
        cached = Path(platformdirs.user_cache_dir("crossroads")) / "kernels"
        facts = [self.path.read_text("utf-8"), *_ALWAYS, *self.flags]
        told = "\n".join([*facts, platform.machine(), _features()])
        digest = hashlib.sha256(told.encode()).hexdigest()[:16]
        return (Path(where) if where else cached) / f"{self.path.stem}-{digest}.so"

    def build(self) -> Path:
        """Compile and return the file; processes that run already do not see it.

        Raises UnavailableError without a compiler, where it fails or cannot write, or where
        compiled files are switched off.
        """
        path = self.built_path()
        if path is None:
            raise UnavailableError(f"{VARIABLE}=off switches compiled files off; unset it to build")
        words = shlex.split(os.environ.get("CC", "cc"))
        compiler = shutil.which(words[0]) if words else None
        if compiler is None:
            raise UnavailableError("no C compiler: install gcc or clang, or name one in CC")
        command = [compiler, *words[1:], *_ALWAYS, *self.flags, "-c", str(self.path)]
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                made, linked = Path(folder) / "made.o", Path(folder) / "linked.so"
                self._run([*command, "-o", str(made)])
                self._run([compiler, *words[1:], "-shared", str(made), "-o", str(linked)])
                code = linked.read_bytes()
            with replacing(path) as draft:
                _write(draft, code + hashlib.sha256(code).digest())
        except (OSError, InputError) as error:
            raise UnavailableError(f"{path.parent}: nothing can be built there: {error}") from error
        return path

    def _run(self, command: Sequence[str]) -> None:
        what = f"{Path(command[0]).name} could not build {self.path.name}"
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S
            )
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"{what} within {_PATIENCE_S} s") from None
        if done.returncode:
            first = (done.stderr.strip().splitlines() or ["no message"])[0]
            raise UnavailableError(f"{what}: {first}")

    def is_built(self) -> bool:
        """Whether there is a built file that would be loaded."""
        path = self.built_path()
        return path is not None and path.is_file() and not _fault(path)

    def load(self, library: type[ctypes.CDLL] = ctypes.CDLL) -> ctypes.CDLL | None:
        """Return the built file, loaded; None if it is absent, unfit or switched off.

        ``library``: ``ctypes.PyDLL`` keeps the interpreter's lock during calls.
        """
        path = self.built_path()
        if path is None or not path.is_file():
            return None
        fault = _fault(path)
        try:
            if not fault:
                return library(str(path))
        except OSError as error:
            fault = str(error)
        _log.warning("%s is not used: %s", path, fault)
        return None

    def main(self, module: str, arguments: Sequence[str] | None = None) -> int:
        """Build for ``python -m module``: print where, or why not; return the exit code.

        The command takes no arguments; argparse leaves the process with code 2 where it is given
        some, and with 0 after ``--help``.
        """
        parser = argparse.ArgumentParser(
            prog=f"python -m {module}",
            description=f"Compile {self.path.name} for this machine and print where it is kept.",
            epilog=f"{VARIABLE}=FOLDER keeps it elsewhere, {VARIABLE}=off leaves it unused.",
        )
        parser.parse_args(arguments)
        try:
            sys.stdout.write(f"{self.build()}\n")
        except UnavailableError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        return 0


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _fault(path: Path) -> str:
    """Return why a built file is not to be loaded, else nothing."""
    if hasattr(os, "getuid"):
        for each in (path.parent, path):
            facts = each.stat()
            if facts.st_uid not in (os.getuid(), 0):
                return f"{each} belongs to somebody else"
            if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return f"others may write {each}"
    try:
        data = path.read_bytes()
    except OSError as error:
        return str(error)
    size = hashlib.sha256().digest_size
    if hashlib.sha256(data[:-size]).digest() != data[-size:]:
        return "it is damaged; remove it, or build it again"
    return ""


def _features() -> str:
    """Return the instruction sets of this processor, where the system tells."""
    facts = Path("/proc/cpuinfo")
    if not facts.is_file():
        return platform.processor()
    lines = facts.read_text("utf-8", errors="replace").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
