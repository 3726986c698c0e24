"""FrenchMedMCQA: 3,105 exam questions of French pharmacy (Labrak et al. 2022), Apache-2.0.

Every question has five choices, of which one or several are right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crossroads.core.errors import InputError
from crossroads.datasets.common import read_json
from crossroads.datasets.paths import data_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class ExamQuestion:
    """A question, its choices in order, and the places of the right ones."""

    question: str
    choices: tuple[str, ...]
    right: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exam:
    """The published parts: 2,171, 312 and 622 questions."""

    train: tuple[ExamQuestion, ...]
    valid: tuple[ExamQuestion, ...]
    test: tuple[ExamQuestion, ...]


def load(folder: Path | None = None) -> Exam:
    """Return the questions.

    ``folder`` holds ``train.json.gz``, ``dev.json.gz`` and ``test.json.gz``; None = the development
    data. Raises UnavailableError where it is absent, InputError for files that cannot be read.
    """
    folder = folder or data_folder("medqa_fr")
    train, valid, test = (_read(folder / f"{part}.json.gz") for part in ("train", "dev", "test"))
    return Exam(train=train, valid=valid, test=test)


def _read(path: Path) -> tuple[ExamQuestion, ...]:
    try:
        return tuple(
            ExamQuestion(
                question=item["question"],
                choices=tuple(item["answers"].values()),
                right=tuple(list(item["answers"]).index(key) for key in item["correct_answers"]),
            )
            for item in read_json(path)
        )
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: an item lacks {error}; restore the file") from error
