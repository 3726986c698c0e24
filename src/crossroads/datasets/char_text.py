"""A text as bytes, for small language models: tiny Shakespeare, or what Python brings along.

Tiny Shakespeare is 1.1 MB of plays (the text is in the public domain). Where the development data
are absent, the help topics of the running Python take its place: 0.5 MB of its reference manual,
whose wording changes with the version. ``CharText.name`` says which one it is, and figures of the
two are not comparable.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, UnavailableError, UsageError
from crossroads.datasets.paths import data_folder

VOCAB_SIZE = 256
VALID_SHARE = 0.05

Bytes = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class CharText:
    """A text in two parts: the first 95 % to train on, the rest to validate with.

    Attributes
    ----------
    name : "tiny-shakespeare" or "python-topics"
    train, valid : bytes, one-dimensional
    """

    name: str
    train: Bytes
    valid: Bytes


@cache
def load() -> CharText:
    """Return tiny Shakespeare, else Python's help topics."""
    try:
        folder = data_folder("tinyshakespeare")
    except UnavailableError:
        return load_python_topics()
    return load_shakespeare(folder)


def load_shakespeare(folder: Path) -> CharText:
    """Return the text of ``input.txt.gz`` in a folder. Raises InputError."""
    path = folder / "input.txt.gz"
    try:
        text = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as gzip: {error}; restore the file") from error
    return _split("tiny-shakespeare", text)


def load_python_topics() -> CharText:
    """Return the help topics of the running Python."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return _split("python-topics", text.encode())


def batch(text: Bytes, *, length: int, batch_size: int, step: int, seed: int) -> Int64:
    """Return the windows of one training step, (batch_size, length + 1).

    Inputs are all but the last column, targets all but the first. Starts are drawn uniformly
    with replacement, by seed and step alone. Raises UsageError for a text that is too short.
    """
    _check_length(text, length)
    starts = np.random.default_rng([seed, step]).integers(len(text) - length, size=batch_size)
    return _cut(text, starts, length)


def windows(text: Bytes, length: int) -> Int64:
    """Return the text cut into windows (N, length + 1) that share only their border byte.

    Every byte but the first, and but a rest shorter than a window, is a target once. Raises
    UsageError for a text that is too short.
    """
    _check_length(text, length)
    return _cut(text, np.arange(0, len(text) - length, length), length)


def _split(name: str, text: bytes) -> CharText:
    whole = np.frombuffer(text, dtype=np.uint8)
    border = round(len(whole) * (1 - VALID_SHARE))
    return CharText(name=name, train=whole[:border], valid=whole[border:])


def _cut(text: Bytes, starts: Int64, length: int) -> Int64:
    cut: Int64 = text[starts[:, None] + np.arange(length + 1)].astype(np.int64)
    return cut


def _check_length(text: Bytes, length: int) -> None:
    if not 1 <= length < len(text):
        raise UsageError(
            f"length: expected a number in [1, {len(text) - 1}], the bytes there are, "
            f"got {length!r}"
        )
