"""How a prompt is worded: its style and its words, as numbers.

Sentence embeddings are scaled to unit length and smooth over spelling, so they lose what a text
looks like: how long it is, whether it carries formulas, which rare words stand in it. Style is a
few shares of characters; words are hashed into buckets, so that no vocabulary has to be kept.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

NUM_BUCKETS = 1 << 13
MOST_CHARACTERS = 4000  # read of each text: enough to tell what it is about, and bounded in time

_WORD = re.compile(r"\w+")
_WORDS_APART = bytes(  # what is in no word becomes a space; for ASCII only
    character if _WORD.fullmatch(chr(character)) else ord(" ") for character in range(256)
)
_GROUPS = (
    b"0123456789",
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    b"abcdefghijklmnopqrstuvwxyz",
    *(bytes([character]) for character in b" \n.,;:?!'\"()[]{}=+-*/\\^_$%<>#`"),
    bytes(range(128, 256)),  # letters beyond ASCII, as UTF-8
)
_IN_GROUP = np.array([[c in group for group in _GROUPS] for c in range(256)], dtype=np.float64)
NUM_STYLES = 2 + len(_GROUPS)


@dataclass(frozen=True, kw_only=True)
class Wording:
    """N texts as numbers.

    Attributes
    ----------
    style : float64 (N, NUM_STYLES); log length, log number of words, roots of character shares
    buckets : the distinct word buckets of all texts, one text after the other
    counts : shape (N,), buckets of each text
    """

    style: Float64
    buckets: Ints
    counts: Ints

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def row_scale(self) -> Float64:
        """Shape (N,): what each text's sums are multiplied by, 1 / (1 + sqrt(number of words))."""
        return 1.0 / (1.0 + np.sqrt(self.counts))

    def sums(self, table: npt.NDArray[Any]) -> Float64:
        """Return each text's scaled sum of table rows, (NUM_BUCKETS, C) -> (N, C)."""
        if len(self) == 1:
            total = table[self.buckets].sum(axis=0, dtype=np.float64)[None]
        else:
            # Every text adds a zero row, so that reduceat meets no empty stretch.
            ends = np.cumsum(self.counts)
            rows = np.insert(table[self.buckets].astype(np.float64), ends, 0.0, axis=0)
            total = np.add.reduceat(rows, ends - self.counts + np.arange(len(self)), axis=0)
        return np.asarray(total * self.row_scale[:, None])

    def matrix(self) -> Any:
        """Return the scaled word counts as a scipy CSR array, shape (N, NUM_BUCKETS)."""
        from scipy.sparse import csr_array

        pointers = np.concatenate([[0], np.cumsum(self.counts)])
        values = np.repeat(self.row_scale, self.counts)
        return csr_array((values, self.buckets, pointers), shape=(len(self), NUM_BUCKETS))


def read_wording(texts: Iterable[str | None]) -> Wording:
    """Return style and words of N texts; None counts as an empty text."""
    cut = [(text or "")[:MOST_CHARACTERS] for text in texts]
    words = [word_buckets(text) for text in cut]
    style = np.empty((len(cut), NUM_STYLES))
    for n, text in enumerate(cut):
        _style(text, len(words[n]), style[n])
    return Wording(
        style=style,
        buckets=np.array(list(chain.from_iterable(words)), dtype=np.intp),
        counts=np.array([len(row) for row in words], dtype=np.intp),
    )


def word_buckets(text: str) -> list[int]:
    """Return the distinct buckets of a text's words, in order of appearance."""
    return list(dict.fromkeys(map(_bucket_of, _words(text.lower()))))


def _words(text: str) -> Iterable[bytes]:
    if text.isascii():  # a third of the time of a search
        return text.encode("ascii").translate(_WORDS_APART).split()
    return map(str.encode, _WORD.findall(text))


class _Buckets(dict[bytes, int]):
    """Bucket of each word seen: words come back."""

    _MOST = 1 << 16

    def __missing__(self, word: bytes) -> int:
        if len(self) >= self._MOST:
            self.clear()
        bucket = self[word] = zlib.crc32(word) & (NUM_BUCKETS - 1)
        return bucket


_bucket_of = _Buckets().__getitem__


def _style(text: str, num_words: int, style: Float64) -> None:
    """Write the style of one text to ``style``, shape (NUM_STYLES,)."""
    code = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8)
    style[0] = math.log1p(len(code))
    style[1] = math.log1p(num_words)
    shares = np.bincount(code, minlength=256) @ _IN_GROUP
    np.sqrt(shares / max(len(code), 1), out=style[2:])
