"""Vectors kept on disk, so that a slow encoder reads each text once.

One SQLite file per encoder name and version, one row per text: its 128-bit hash, its vector as
little-endian float32, a checksum of the vector. SQLite keeps concurrent writers apart and undoes
half-written rows; a file that is no database is replaced, a row with a wrong checksum is encoded
again. A cache that cannot be used (read-only, locked, full) is passed by with a log message.

The folder is ``CROSSROADS_CACHE``, else the user's cache folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crossroads.core.progress import Progress
from crossroads.models.encoders import Encoder, Float32

VARIABLE = "CROSSROADS_CACHE"
_LOG = logging.getLogger(__name__)
_BATCH = 64  # texts encoded between two writes: what an interruption may lose
_WAIT_SECONDS = 10.0  # for another writer


def cache_folder() -> Path:
    """Return the folder of everything crossroads caches."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("crossroads"))


def encode_cached(
    encoder: Encoder, texts: Sequence[str], progress: Progress | None = None
) -> Float32:
    """Return ``encoder.encode(texts)``, shape (N, dim), reading known texts from disk.

    Encoders that are faster than the disk are called directly.
    """
    if not encoder.is_slow:
        return encoder.encode(texts, progress)
    keys = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    path = cache_folder() / "embeddings" / f"{encoder.name}-{encoder.version}.sqlite"
    known = _read(path, keys, encoder.dim)
    missing = list({key: n for n, key in enumerate(keys) if key not in known}.items())
    for start in range(0, len(missing), _BATCH):
        batch = missing[start : start + _BATCH]
        vectors = encoder.encode([texts[n] for _, n in batch])
        fresh = {key: vector for (key, _), vector in zip(batch, vectors, strict=True)}
        _write(path, fresh)
        known.update(fresh)
        if progress:
            progress(min(start + _BATCH, len(missing)), len(missing))
    if not keys:
        return np.zeros((0, encoder.dim), dtype=np.float32)
    return np.stack([known[key] for key in keys])


def _read(path: Path, keys: Sequence[bytes], dim: int) -> dict[bytes, Float32]:
    """Return the vectors found, by key."""
    if not path.is_file():
        return {}
    found: dict[bytes, Float32] = {}
    try:
        with closing(_open(path)) as store:
            for key, blob, checksum in _rows(store, keys):
                if len(blob) == 4 * dim and zlib.crc32(blob) == checksum:
                    found[key] = np.frombuffer(blob, dtype="<f4").astype(np.float32)
    except sqlite3.OperationalError as error:  # locked, or no permission: not damaged
        _LOG.info("embedding cache %s not read: %s", path, error)
    except (sqlite3.DatabaseError, TypeError) as error:
        _LOG.warning("embedding cache %s is damaged and will be rebuilt: %s", path, error)
        path.unlink(missing_ok=True)
    return found


def _rows(store: sqlite3.Connection, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes, int]]:
    step = 500  # variables in one query
    for start in range(0, len(keys), step):
        batch = keys[start : start + step]
        marks = ",".join("?" * len(batch))
        yield from store.execute(
            f"SELECT key, vector, checksum FROM vectors WHERE key IN ({marks})", batch
        )


def _write(path: Path, vectors: dict[bytes, npt.NDArray[np.float32]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(_open(path)) as store, store:
            store.execute(
                "CREATE TABLE IF NOT EXISTS vectors "
                "(key BLOB PRIMARY KEY, vector BLOB, checksum INTEGER) WITHOUT ROWID"
            )
            blobs = ((key, vector.astype("<f4").tobytes()) for key, vector in vectors.items())
            store.executemany(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)",
                ((key, blob, zlib.crc32(blob)) for key, blob in blobs),
            )
    except (sqlite3.Error, OSError) as error:
        _LOG.info("embedding cache %s not written: %s", path, error)


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_WAIT_SECONDS)
