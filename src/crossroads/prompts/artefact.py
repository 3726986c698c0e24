"""A folder on disk that holds a header and arrays: ``router.json`` and ``arrays-HASH.npz``.

The header carries the format's version and the hash of the arrays, which also names their file: a
damaged or mixed-up folder is recognised, and an older artefact is replaced in one step, by the
header, with its arrays still there until then. Whoever reads meanwhile, or after a writer was
killed, finds one whole artefact. Nothing is pickled: arrays of Python objects are refused on
writing and on reading.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError

Arrays = dict[str, npt.NDArray[Any]]

FORMAT_VERSION = 2  # newest that is read; 2 added the verifier, 1 is a router alone
KIND = "crossroads router"
HEADER = "router.json"
# Arrays, and what a killed writer leaves: whatever the header does not name of these may go.
_OURS = re.compile(
    r"arrays(-[0-9a-f]{16})?\.npz|\.(arrays-[0-9a-f]{16}\.npz|router\.json)\.partial"
)
_ARRAYS = re.compile(r"arrays-[0-9a-f]{16}\.npz")


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


def write_artefact(
    folder: str | Path,
    header: Mapping[str, Any],
    arrays: Arrays,
    *,
    format_version: int = FORMAT_VERSION,
) -> None:
    """Write the folder, replacing an older artefact there, whole or not at all.

    ``format_version`` is the least one that holds the content, so that older versions read what
    they can. One writer at a time. Raises InputError where something else stands there, or the
    system refuses.
    """
    folder = Path(folder).absolute()
    data = npz_bytes(arrays)
    digest = hashlib.sha256(data).hexdigest()
    facts = {"kind": KIND, "format_version": format_version, **header, "arrays_sha256": digest}
    text = json.dumps(facts, indent=2, allow_nan=False, ensure_ascii=False)
    check_place(folder)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _replace(folder / arrays_name(facts), data)
            _replace(folder / HEADER, text.encode("utf-8") + b"\n")
        finally:
            _remove_unnamed(folder)
            if made and not any(folder.iterdir()):
                folder.rmdir()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from error


def arrays_name(header: Mapping[str, Any]) -> str:
    """Return the name of the file of a header's arrays. Raises ValueError where it has no hash."""
    digest = header.get("arrays_sha256")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"arrays_sha256 {digest!r:.40} is no hash")
    return f"arrays-{digest[:16]}.npz"


def read_artefact(folder: str | Path) -> tuple[dict[str, Any], Arrays]:
    """Return header and arrays. Raises InputError for anything missing, damaged or too new."""
    folder = Path(folder)
    header, name, data = _read_pair(folder)
    if hashlib.sha256(data).hexdigest() != header["arrays_sha256"]:
        raise InputError(
            f"{folder}: {name} is damaged or of another router than {HEADER}; fit the router again"
        )
    try:
        return header, npz_arrays(data)
    except ValueError as error:
        raise InputError(f"{folder}: {name} is not readable; fit the router again") from error


def _read_pair(folder: Path) -> tuple[dict[str, Any], str, bytes]:
    """Return the header, and the name and content of the file of its arrays."""
    header = _read_header(folder)
    while True:
        try:
            name = arrays_name(header)
            return header, name, (folder / name).read_bytes()
        except OSError as error:
            newer = _read_header(folder)
            if newer == header:
                raise InputError(
                    f"{folder}: {name} cannot be read ({error.strerror}); fit the router again"
                ) from error
            header = newer  # replaced by a writer since it was read
        except ValueError as error:
            raise InputError(f"{folder / HEADER}: {error}; fit the router again") from error


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
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: a file stands there; give a folder for the router")
    try:
        _check_ours(folder)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        # any reason will do: what is not surely ours is not replaced
        raise InputError(
            f"{folder}: holds something else than a fitted router; give a new or empty folder"
        ) from None


def _check_ours(folder: Path) -> None:
    """Raise unless the folder holds an artefact of any version, part of one, or nothing.

    A header that is no JSON is a damaged one of ours where arrays lie beside it, whose name has
    their hash: fitting again mends it.
    """
    names = {entry.name for entry in folder.iterdir()}
    if HEADER in names:
        try:
            kind = json.loads((folder / HEADER).read_text("utf-8"))["kind"]
        except ValueError:
            if not any(_ARRAYS.fullmatch(name) for name in names):
                raise
            kind = KIND
        if kind != KIND:
            raise LookupError(HEADER)
    if not all(_OURS.fullmatch(name) for name in names - {HEADER}):
        raise LookupError(folder)


def _replace(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all, with the usual permissions."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _remove_unnamed(folder: Path) -> None:
    """Remove what the standing header does not name: older arrays, or those of a failed write."""
    kept = {HEADER}
    try:
        kept.add(arrays_name(json.loads((folder / HEADER).read_text("utf-8"))))
    except FileNotFoundError:
        pass  # nothing stands here yet
    except (OSError, ValueError, AttributeError):
        return  # unknown what is needed
    for entry in folder.iterdir():
        if entry.name not in kept and _OURS.fullmatch(entry.name):
            entry.unlink(missing_ok=True)
