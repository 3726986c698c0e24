"""GSM8K: 8,792 word problems of primary school (Cobbe et al. 2021), MIT licence.

Answers are steps, one a line, and a last line ``#### number``. The calculator's marks
``<<48/2=24>>`` are taken out unless asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from crossroads.core.errors import InputError
from crossroads.datasets.common import read_json_lines
from crossroads.datasets.paths import data_folder

_MARK = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A question and its worked answer."""

    question: str
    answer: str

    @property
    def result(self) -> str:
        """The number of the last line, without thousands separators."""
        return self.answer.rpartition("####")[2].strip().replace(",", "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problems:
    """The published parts: 7,473 and 1,319 problems."""

    train: tuple[Problem, ...]
    test: tuple[Problem, ...]


def load(folder: Path | None = None, *, marks: bool = False) -> Problems:
    """Return the problems; ``marks`` keeps the calculator's marks.

    ``folder`` holds ``train.jsonl.gz`` and ``test.jsonl.gz``; None = the development data. Raises
    UnavailableError where it is absent, InputError for files that cannot be read.
    """
    folder = folder or data_folder("gsm8k")
    train, test = (_read(folder / f"{part}.jsonl.gz", marks) for part in ("train", "test"))
    return Problems(train=train, test=test)


def _read(path: Path, marks: bool) -> tuple[Problem, ...]:
    try:
        rows = [(row["question"], row["answer"]) for row in read_json_lines(path)]
    except KeyError as error:
        raise InputError(f"{path}: a row has no {error}; restore the file") from error
    return tuple(
        Problem(question=question, answer=answer if marks else _MARK.sub("", answer))
        for question, answer in rows
    )
