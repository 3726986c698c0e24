"""Tatoeba: 88,877 sentences of 112 languages with their English translations, CC BY 2.0 FR.

The extract of November 2018 that was published with LASER (Artetxe and Schwenk 2019): up to 1,000
pairs a language. English sentences recur between languages.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from crossroads.core.errors import InputError, unknown_name
from crossroads.datasets.common import read_json_lines
from crossroads.datasets.paths import data_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A sentence of ``language`` (ISO 639-3) and its translation."""

    language: str
    text: str
    english: str


def load(folder: Path | None = None, *, languages: Collection[str] | None = None) -> list[Pair]:
    """Return the pairs of ``languages``, by default of all, in file order.

    ``folder`` holds ``tatoeba.jsonl.gz``; None = the development data. Raises UnavailableError
    where it is absent, InputError for a file that cannot be read, UsageError for an unknown
    language.
    """
    path = (folder or data_folder("tatoeba")) / "tatoeba.jsonl.gz"
    try:
        pairs = [
            Pair(language=row["lang"], text=row["text"], english=row["eng"])
            for row in read_json_lines(path)
        ]
    except KeyError as error:
        raise InputError(f"{path}: a row has no {error}; restore the file") from error
    known = {pair.language for pair in pairs}
    for language in languages or ():
        if language not in known:
            raise unknown_name("Tatoeba language", language, known)
    return [pair for pair in pairs if languages is None or pair.language in languages]
