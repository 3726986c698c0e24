"""Sums of the vectors of a text's words, in C where it was built: see ``words.c``."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UnavailableError
from crossroads.core.native import Source

SOURCE = Source(Path(__file__).with_name("words.c"))
_MOST = 1 << 16  # words remembered: 8 MB, and less where fewer occur
_LONGEST = 48  # bytes of a word that is remembered; longer ones hardly ever come back
_TEXT_ROOM = 1 << 20  # bytes of all of them
_ITEM = np.dtype(np.intp).itemsize
_ROWS_ROOM = 1 << 20  # numbers of rows


class WordSums:
    """Adds up rows of a table, those of a text's words, which it learns as they come.

    Parameters
    ----------
    library : the built file, loaded with ``ctypes.PyDLL``: a call is one step for all threads
    table : float32 (V, D), rows of pieces; filled before ``learn`` names them, and never moved
    learn : returns the rows of a word, the bytes of ``intp`` numbers
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        table: npt.NDArray[np.float32],
        learn: Callable[[str], bytes],
    ) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        new, self._free = library.words_new, library.words_free
        new.argtypes, new.restype = [size] * 3, pointer
        self._free.argtypes, self._free.restype = [pointer], None
        self._add = library.words_add
        self._add.argtypes = [pointer, ctypes.c_char_p, size, ctypes.c_char_p, size]
        self._sum = library.words_sum
        self._sum.argtypes = [pointer, ctypes.c_char_p, size, size, pointer, size, pointer, pointer]
        self._sum.restype = ctypes.c_int64
        self._words: int | None = new(_MOST, _TEXT_ROOM, _ROWS_ROOM)
        if self._words is None:
            raise MemoryError("no memory for the words of texts")
        self._table = table
        self._first, self._width = table.ctypes.data, table.shape[1]
        self._learn = learn

    def __del__(self) -> None:
        if getattr(self, "_words", None) is not None:
            self._free(self._words)

    def add(self, texts: Sequence[bytes | None], out: npt.NDArray[np.float32]) -> None:
        """Add the rows of all words of each text in UTF-8 to its row of ``out`` (N, D).

        What is None or empty is passed over.
        """
        end = ctypes.c_size_t()
        where, target, step = ctypes.addressof(end), out.ctypes.data, out.strides[0]
        for number, text in enumerate(texts):
            if text:
                at, length = 0, len(text)
                while True:
                    at = self._sum(
                        self._words, text, length, at, self._first, self._width, target, where
                    )
                    if at < 0:
                        break
                    stop = end.value
                    if not self._take_in(text[at:stop], out[number]):
                        continue  # it is known now
                    at = stop + 1
            target += step

    def _take_in(self, word: bytes, out_D: npt.NDArray[np.float32]) -> bool:
        """Remember a word; add a long one to ``out_D`` instead, and return whether it was."""
        rows = self._learn(word.decode())
        if len(word) <= _LONGEST and self._add(
            self._words, word, len(word), rows, len(rows) // _ITEM
        ):
            return False
        for row in np.frombuffer(rows, dtype=np.intp):
            out_D += self._table[row]
        return True


def prepare() -> str:
    """Build the C file unless it is there; return a line that says what was done, if anything.

    For programs that encode all day: where it cannot be built, the same is computed without it. A
    process that has loaded an encoder already does not see it.
    """
    if SOURCE.built_path() is None or SOURCE.is_built():
        return ""
    try:
        return f"compiled {SOURCE.build()}, once for this machine"
    except UnavailableError as error:
        return f"word vectors are added up without compiled code, which is slower: {error}"


if __name__ == "__main__":
    sys.exit(SOURCE.main("crossroads.models.word_sums"))
