"""CLINC150: short requests to an assistant, with one of 150 intents in 10 domains.

Larson et al., An evaluation dataset for intent classification and out-of-scope prediction (2019),
CC BY 3.0. 15,000 / 3,000 / 4,500 requests; the out-of-scope ones are left out. Words are those of
the training part that occur twice or more, lower-cased and split at spaces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from crossroads.datasets.common import read_json
from crossroads.datasets.paths import data_folder

PADDING, UNKNOWN = 0, 1
FEWEST = 2  # occurrences of a word that gets an id of its own


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Requests as word ids (N, T), their mask (N, T; True = real), and labels (N,)."""

    token: npt.NDArray[np.int64]
    mask: npt.NDArray[np.bool_]
    label: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Intents:
    """The data set.

    Attributes
    ----------
    train, valid, test : requests, all padded to the longest of them all
    words : by id; the first two stand for padding and unknown words
    classes : by label
    """

    train: Texts
    valid: Texts
    test: Texts
    words: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A request as it was written, and what it asks for."""

    text: str
    intent: str
    domain: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Requests:
    """The published parts, in file order."""

    train: tuple[Request, ...]
    valid: tuple[Request, ...]
    test: tuple[Request, ...]


def load_requests(folder: Path | None = None) -> Requests:
    """Return the requests as texts; the rest as for ``load``."""
    folder = folder or data_folder("clinc150")
    parts = read_json(folder / "data_full.json.gz")
    domains = read_json(folder / "domains.json.gz")
    domain_of = {intent: domain for domain, intents in domains.items() for intent in intents}
    train, valid, test = (
        tuple(Request(text=t, intent=i, domain=domain_of[i]) for t, i in parts[part])
        for part in ("train", "val", "test")
    )
    return Requests(train=train, valid=valid, test=test)


def load_domains(folder: Path | None = None) -> dict[str, tuple[str, ...]]:
    """Return the intents of every domain, in the data set's order; the rest as for ``load``."""
    folder = folder or data_folder("clinc150")
    return {name: tuple(intents) for name, intents in read_json(folder / "domains.json.gz").items()}


def load(folder: Path | None = None, *, label: Literal["domain", "intent"] = "domain") -> Intents:
    """Return the requests with their domains (10) or intents (150).

    ``folder`` holds ``data_full.json.gz`` and ``domains.json.gz``; None = the development data.
    Raises UnavailableError where those are absent, InputError for files that cannot be read.
    """
    folder = folder or data_folder("clinc150")
    parts = read_json(folder / "data_full.json.gz")
    domains = read_json(folder / "domains.json.gz")
    name_of = {intent: domain for domain, intents in domains.items() for intent in intents}
    if label == "intent":
        name_of = {intent: intent for intent in name_of}
    classes = tuple(sorted(set(name_of.values())))
    counts = Counter(word for text, _ in parts["train"] for word in _words(text))
    known = sorted(word for word, count in counts.items() if count >= FEWEST)
    words = ("<padding>", "<unknown>", *known)
    longest = max(len(_words(text)) for part in ("train", "val", "test") for text, _ in parts[part])

    ids = {word: number for number, word in enumerate(words)}
    labels = {intent: classes.index(name) for intent, name in name_of.items()}
    train, valid, test = (
        _encoded(parts[part], ids, labels, longest) for part in ("train", "val", "test")
    )
    return Intents(train=train, valid=valid, test=test, words=words, classes=classes)


def _words(text: str) -> list[str]:
    return text.lower().split()


def _encoded(
    rows: Sequence[tuple[str, str]], ids: Mapping[str, int], labels: Mapping[str, int], longest: int
) -> Texts:
    token = np.full((len(rows), longest), PADDING, dtype=np.int64)
    for row, (text, _) in zip(token, rows, strict=True):
        found = [ids.get(word, UNKNOWN) for word in _words(text)]
        row[: len(found)] = found
    label = np.array([labels[intent] for _, intent in rows], dtype=np.int64)
    return Texts(token=token, mask=token != PADDING, label=label)
