"""Questions with answers, and on which side of a split they lie.

The side is a function of a hash of the normalised text alone, so that a question that occurs twice,
in one data set or in two, never lies on two sides. Rows are in the order of their hashes: the first
n are a random sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
VALIDATION_SHARE = 0.05
TEST_SHARE = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One question.

    Attributes
    ----------
    prompt : the whole text before the answer
    answer : what is scored, its leading space included
    options : answers to choose from, the right one among them; None = the answer is free
    """

    prompt: str
    answer: str
    options: tuple[str, ...] | None = None

    @property
    def right(self) -> int:
        """Place of the answer among the options; -1 where it is free."""
        return -1 if self.options is None else self.options.index(self.answer)


def place(text: str, salt: str = "") -> float:
    """Return a number in [0, 1) that depends on nothing but the words of a text (and ``salt``)."""
    words = " ".join(text.casefold().split())
    digest = hashlib.blake2b(f"{salt}\n{words}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def side(text: str, *, test: float = TEST_SHARE, validation: float = VALIDATION_SHARE) -> Split:
    """Return the split of a text: the last ``test`` of places, before them ``validation``."""
    at = place(text)
    if at >= 1 - test:
        return "test"
    return "validation" if at >= 1 - test - validation else "train"


def pick(choices: Sequence[str], count: int, text: str) -> list[str]:
    """Return ``count`` different choices, in an order that is drawn from ``text`` alone.

    Raises ValueError where there are fewer.
    """
    if count > len(choices):
        raise ValueError(f"cannot pick {count} of {len(choices)}")
    left, found = list(choices), []
    for turn in range(count):
        found.append(left.pop(int(place(text, salt=f"pick {turn}") * len(left))))
    return found


def divided(
    keyed: Iterable[tuple[str, Row]],
    *,
    test: float = TEST_SHARE,
    validation: float = VALIDATION_SHARE,
    most: int,
) -> dict[Split, tuple[Row, ...]]:
    """Divide rows by the hash of their keys, at most ``most`` a side, see ``apart``."""
    found: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    for key, row in keyed:
        found[side(key, test=test, validation=validation)].append(row)
    return apart(found, most=most)


def published(
    train: Sequence[Row], validation: Sequence[Row], test: Sequence[Row], *, most: int
) -> dict[Split, tuple[Row, ...]]:
    """Keep published parts, at most ``most`` rows each, see ``apart``.

    Without a validation part, a share of the training part becomes it, by hash.
    """
    if not validation:
        cut = divided(((row.prompt, row) for row in train), test=0.0, most=len(train))
        train, validation = cut["train"], cut["validation"]
    return apart({"train": train, "validation": validation, "test": test}, most=most)


def apart(sides: Mapping[Split, Sequence[Row]], *, most: int) -> dict[Split, tuple[Row, ...]]:
    """Put each side in the order of hashes and cut it to ``most`` rows.

    A prompt that is on an earlier side (training, then validation) is taken from the later ones.
    """
    seen: set[float] = set()
    kept: dict[Split, tuple[Row, ...]] = {}
    for split in SPLITS:
        rows = [row for row in sides[split] if place(row.prompt) not in seen]
        seen |= {place(row.prompt) for row in rows}
        kept[split] = in_order(rows)[:most]
    return kept


def in_order(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return the rows in the order of their hashes."""
    return tuple(sorted(rows, key=lambda row: place(f"{row.prompt}\n{row.answer}")))


def fingerprint(rows: Iterable[Row]) -> str:
    """Return a hash of rows in their order, to notice data that changed."""
    digest = hashlib.blake2b(digest_size=12)
    for row in rows:
        digest.update(repr((row.prompt, row.answer, row.options)).encode())
    return digest.hexdigest()
