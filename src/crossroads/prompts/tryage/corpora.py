"""Six kinds of text found wherever Python and this package's dependencies are installed.

| domain | where it is read from |
|---|---|
| ``python`` | modules of the standard library |
| ``c`` | C headers of Python and of numpy |
| ``prose`` | Python's language reference (``pydoc_data``) and the descriptions of distributions |
| ``licences`` | licence files of distributions and of the operating system |
| ``records`` | header fields of distributions and of operating-system packages (RFC 822 style) |
| ``tables`` | numeric data that numpy and scipy ship for their tests |

A document is one file, topic or record. A paragraph that an earlier document of its domain holds
is dropped, and a document is on one side only, chosen by the hash of its text: what is held out was
not trained on, though licences and records resemble each other by nature.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, unknown_name
from crossroads.models.encoders import package_folder

TRAIN_SHARE = 0.6  # of the documents, for the experts; the rest is for routers and their test
_MOST_CHARS = 1_000_000  # of a domain
_MOST_OF_ONE = 40_000  # characters of one document: no file dominates its domain
_LEAST_TRAIN = 60_000  # characters
_LEAST_HELD_OUT = 8  # documents
_SHORTEST_DOCUMENT = 200  # characters
_SHORTEST_PARAGRAPH = 60  # shorter ones may recur: headings, closing brackets
_SHARED = Path("/usr/share")
_PACKAGE_STATUS = Path("/var/lib/dpkg/status")

Texts = Iterator[tuple[str, str]]  # (name, text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One text of a domain and which side of the split it is on."""

    name: str
    text: str
    is_held_out: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The documents of one domain."""

    domain: str
    documents: tuple[Document, ...]

    @property
    def held_out(self) -> tuple[Document, ...]:
        return tuple(d for d in self.documents if d.is_held_out)

    def training_bytes(self) -> npt.NDArray[np.uint8]:
        """Return the training documents one after the other, shape (B,)."""
        texts = (d.text for d in self.documents if not d.is_held_out)
        return np.frombuffer("\n\n".join(texts).encode(), dtype=np.uint8)

    def digest(self) -> str:
        """Return a hash of all texts: it changes when the machine's files do."""
        state = hashlib.blake2b(self.domain.encode(), digest_size=16)
        for document in self.documents:
            state.update(f"\0{document.is_held_out}\0{document.text}".encode())
        return state.hexdigest()


def load_corpora(domains: Sequence[str] = ()) -> tuple[Corpus, ...]:
    """Return the corpora of these domains, of all six by default.

    Raises UsageError for an unknown domain, InputError where this machine has too little of one.
    """
    names = tuple(domains) or DOMAINS
    for name in names:
        if name not in _SOURCES:
            raise unknown_name("domain", name, DOMAINS)
    return tuple(make_corpus(name, _SOURCES[name][0]()) for name in names)


def make_corpus(domain: str, texts: Iterable[tuple[str, str]]) -> Corpus:
    """Build a corpus of named texts: shortened, without repeated paragraphs, split by hash.

    Raises InputError where too little is left to train an expert and hold documents out.
    """
    seen: set[bytes] = set()
    documents = []
    total = 0
    for name, text in sorted(texts, key=lambda item: _digest(item[0])):
        if total >= _MOST_CHARS:
            break
        fresh = _without_repetitions(text.replace("\r\n", "\n")[:_MOST_OF_ONE], seen)
        if len(fresh) < _SHORTEST_DOCUMENT:
            continue
        share = int.from_bytes(_digest(fresh), "little") / 2**64
        documents.append(Document(name=name, text=fresh, is_held_out=share >= TRAIN_SHARE))
        total += len(fresh)
    corpus = Corpus(domain=domain, documents=tuple(documents))
    _check_size(corpus)
    return corpus


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """N pieces of held-out text to route, all of L bytes.

    Attributes
    ----------
    pieces : uint8, shape (N, L)
    texts : str, shape (N,)
    domain : str, shape (N,); for reading results, never shown to a router
    document : str, shape (N,); pieces of one document belong on one side of a split
    """

    pieces: npt.NDArray[np.uint8]
    texts: npt.NDArray[np.object_]
    domain: npt.NDArray[np.object_]
    document: npt.NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.texts)

    def split(
        self, seed: int, train_share: float = 0.7
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Return (training rows, test rows): a share of each domain's documents, none on both."""
        rng = np.random.default_rng(seed)
        is_train = np.zeros(len(self), dtype=bool)
        for domain in dict.fromkeys(self.domain):
            rows = np.flatnonzero(self.domain == domain)
            names = np.unique(self.document[rows].astype(str))
            chosen = rng.permutation(names)[: round(train_share * len(names))]
            is_train[rows] = np.isin(self.document[rows].astype(str), chosen)
        return np.flatnonzero(is_train), np.flatnonzero(~is_train)


def held_out_prompts(
    corpora: Sequence[Corpus], *, per_domain: int, length: int, seed: int = 0
) -> Prompts:
    """Cut held-out documents into pieces of ``length`` bytes and draw some of each domain.

    Documents take turns, so that none dominates its domain. A domain with fewer pieces gives all
    it has. Raises InputError unless both numbers are >= 1.
    """
    if per_domain < 1 or length < 1:
        raise InputError(
            f"held-out prompts: expected per_domain and length >= 1, got {per_domain}, {length}"
        )
    rng = np.random.default_rng(seed)
    pieces: list[tuple[str, str, bytes]] = []
    for corpus in corpora:
        turns = []
        for document in corpus.held_out:
            cut = _pieces(document.text.encode(), length)
            turns += [(t, document.name, cut[i]) for t, i in enumerate(rng.permutation(len(cut)))]
        turns.sort(key=lambda turn: turn[0])
        pieces += [(corpus.domain, name, piece) for _, name, piece in turns[:per_domain]]
    return Prompts(
        pieces=np.frombuffer(b"".join(p for *_, p in pieces), np.uint8).reshape(-1, length),
        texts=np.array([p.decode("utf-8", "replace") for *_, p in pieces], dtype=object),
        domain=np.array([domain for domain, *_ in pieces], dtype=object),
        document=np.array([f"{domain}/{name}" for domain, name, _ in pieces], dtype=object),
    )


def _pieces(data: bytes, length: int) -> list[bytes]:
    """Cut into consecutive pieces; the rest and all but empty ones are left out."""
    cut = [data[i : i + length] for i in range(0, len(data) - length + 1, length)]
    return [piece for piece in cut if len(piece.strip()) > length // 8]


def _without_repetitions(text: str, seen: set[bytes]) -> str:
    """Drop the paragraphs whose words are in ``seen``, and add the others to it."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        words = " ".join(paragraph.split()).casefold()
        key = _digest(words)
        if len(words) < _SHORTEST_PARAGRAPH or key not in seen:
            kept.append(paragraph)
            seen.add(key)
    return "\n\n".join(kept).strip()


def _check_size(corpus: Corpus) -> None:
    held_out = len(corpus.held_out)
    train = sum(len(d.text) for d in corpus.documents if not d.is_held_out)
    if train < _LEAST_TRAIN or held_out < _LEAST_HELD_OUT:
        where = _SOURCES[corpus.domain][1] if corpus.domain in _SOURCES else "more documents"
        raise InputError(
            f"domain {corpus.domain!r}: {train} characters to train on and {held_out} documents "
            f"held out, needed {_LEAST_TRAIN} and {_LEAST_HELD_OUT}; add {where}, or leave the "
            "domain out"
        )


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()


def _files(roots: Iterable[Path | None], pattern: str) -> Iterator[Path]:
    """Yield the files below the roots that exist, each once, but not what is installed beside."""
    for root in roots:
        if root is None or not root.is_dir():
            continue
        for path in root.rglob(pattern):
            parts = path.relative_to(root).parts
            if not {"site-packages", "dist-packages", "__pycache__"} & set(parts):
                yield path


def _read(paths: Iterable[Path]) -> Texts:
    """Yield names and texts of the files that can be read as UTF-8."""
    for path in paths:
        try:
            yield str(path), path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def _folder(key: str) -> Path | None:
    place = sysconfig.get_path(key)
    return Path(place) if place else None


def _python() -> Texts:
    stdlib = _folder("stdlib")
    tests = {"test", "tests", "idle_test", "pydoc_data"}
    modules = _files([stdlib], "*.py")
    return _read(p for p in modules if stdlib and not tests & set(p.relative_to(stdlib).parts))


def _c() -> Texts:
    return _read(_files([_folder("include"), package_folder("numpy")], "*.h"))


def _prose() -> Texts:
    from pydoc_data import topics

    for name, text in topics.topics.items():
        yield f"pydoc_data/{name}", text
    for name, metadata in _metadata():
        yield f"description/{name}", metadata.partition("\n\n")[2]


def _licences() -> Texts:
    yield from _read(_files([_SHARED / "common-licenses"], "*"))
    yield from _read(_files([_SHARED / "doc"], "copyright"))
    named = re.compile(r"licen[cs]e|copying|notice", re.IGNORECASE)
    for distribution in importlib.metadata.distributions():
        files = [Path(str(f.locate())) for f in distribution.files or () if named.search(f.name)]
        yield from _read(f for f in files if f.suffix in {"", ".txt", ".md", ".rst"})


def _records() -> Texts:
    for name, metadata in _metadata():
        yield f"metadata/{name}", metadata.partition("\n\n")[0]
    for _, status in _read([_PACKAGE_STATUS]):
        for stanza in status.split("\n\n"):
            yield f"status/{stanza.partition(chr(10))[0]}", stanza


def _metadata() -> Texts:
    for distribution in importlib.metadata.distributions():
        text = distribution.read_text("METADATA")
        if text:
            yield distribution.name, text


def _tables() -> Texts:
    kinds = {".csv", ".dat", ".txt", ".arff"}
    found = _files([package_folder("numpy"), package_folder("scipy")], "*")
    return _read(p for p in found if p.suffix in kinds and "tests" in p.parts)


_SOURCES: dict[str, tuple[Callable[[], Texts], str]] = {
    "python": (_python, "the standard library's sources"),
    "c": (_c, "Python's or numpy's C headers"),
    "prose": (_prose, "the standard library's pydoc_data, or distributions with descriptions"),
    "licences": (_licences, "/usr/share/common-licenses, or distributions with licence files"),
    "records": (_records, "installed distributions with METADATA"),
    "tables": (_tables, "numpy and scipy with their test data"),
}
DOMAINS = tuple(_SOURCES)
