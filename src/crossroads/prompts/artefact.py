"""A folder on disk that holds a header and arrays: ``router.json`` and ``arrays.npz``.

The header carries the format's version and the hash of the arrays, so that a damaged or mixed-up
folder is recognised. Folders are written whole beside their place and moved there. Nothing is
pickled: arrays of Python objects are refused on writing and on reading.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError

Arrays = dict[str, npt.NDArray[Any]]

FORMAT_VERSION = 1
KIND = "crossroads router"
HEADER, ARRAYS = "router.json", "arrays.npz"


def npz_bytes(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return an npz file whose bytes depend on nothing but the arrays: no date, no compression."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, member.getvalue())
    return out.getvalue()


def npz_arrays(data: bytes) -> Arrays:
    """Return the arrays of an npz file. Raises ValueError for anything else, objects included."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays)
    except (LookupError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError("not an npz file") from error


def write_artefact(folder: str | Path, header: Mapping[str, Any], arrays: Arrays) -> None:
    """Write the folder, replacing an older artefact there, whole or not at all.

    Raises InputError where something else stands there, or the system refuses.
    """
    folder = Path(folder).absolute()
    data = npz_bytes(arrays)
    digest = hashlib.sha256(data).hexdigest()
    facts = {"kind": KIND, "format_version": FORMAT_VERSION, **header, "arrays_sha256": digest}
    text = json.dumps(facts, indent=2, allow_nan=False, ensure_ascii=False)
    check_place(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            new = partial / "new"  # made by mkdir, so that its permissions are the usual ones
            new.mkdir()
            (new / ARRAYS).write_bytes(data)
            (new / HEADER).write_text(text + "\n", "utf-8")
            _swap(new, folder, partial / "old")
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from error


def read_artefact(folder: str | Path) -> tuple[dict[str, Any], Arrays]:
    """Return header and arrays. Raises InputError for anything missing, damaged or too new."""
    folder = Path(folder)
    header = _read_header(folder)
    try:
        data = (folder / ARRAYS).read_bytes()
    except OSError as error:
        raise InputError(
            f"{folder}: {ARRAYS} cannot be read ({error.strerror}); fit the router again"
        ) from error
    if hashlib.sha256(data).hexdigest() != header.get("arrays_sha256"):
        raise InputError(
            f"{folder}: {ARRAYS} is damaged or of another router than {HEADER}; "
            "fit the router again"
        )
    try:
        return header, npz_arrays(data)
    except ValueError as error:
        raise InputError(f"{folder}: {ARRAYS} is not readable; fit the router again") from error


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    if not path.is_file():
        what = "no such folder" if not folder.exists() else f"no {HEADER} in it"
        raise InputError(
            f"router {str(folder)!r}: {what}; make one with: crossroads fit --outcomes F --out DIR"
        )
    try:
        header = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON; fit the router again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(header, dict) or header.get("kind") != KIND:
        raise InputError(f"{path}: not the header of a fitted router; give its folder")
    version = header.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise InputError(f"{path}: format_version {version!r} is no version; fit the router again")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path}: written in format {version}, this crossroads reads up to {FORMAT_VERSION}; "
            "upgrade crossroads or fit the router again"
        )
    return header


def check_place(folder: str | Path) -> None:
    """Raise InputError where an artefact may not be written: something else stands there."""
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: a file stands there; give a folder for the router")
    try:
        _read_header_kind(folder)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        # any reason will do: what is not surely ours is not replaced
        raise InputError(
            f"{folder}: holds something else than a fitted router; give a new or empty folder"
        ) from None


def _read_header_kind(folder: Path) -> None:
    """Raise unless the folder holds an artefact of any version, and nothing else."""
    header = json.loads((folder / HEADER).read_text("utf-8"))
    others = {entry.name for entry in folder.iterdir()} - {HEADER, ARRAYS}
    if header["kind"] != KIND or others:
        raise LookupError(folder)


def _swap(new: Path, folder: Path, old: Path) -> None:
    """Put ``new`` in the place of ``folder``; the older one comes back where that fails."""
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
