"""BIG-Bench Hard: 6,511 questions of 27 reasoning tasks (Suzgun et al. 2022), MIT licence.

Questions with choices list them at their end, as ``(A) ...`` or as ``- Yes``; the choices of the
others are those their task's answers show. Three published rows cut titles at their commas, so that
no choice is the answer: they count as free.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from crossroads.core.errors import InputError, unknown_name
from crossroads.datasets.common import read_json_lines
from crossroads.datasets.paths import data_folder

_LETTER = re.compile(r"^\(([A-Z])\) ", re.MULTILINE)
_DASHED = re.compile(r"^- (.+)$", re.MULTILINE)
_MOST = 3  # different answers of a task whose answers are its choices (yes, no)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question; ``choices`` is empty where the answer is free. Letters are without brackets."""

    task: str
    text: str
    answer: str
    choices: tuple[str, ...]


def load(folder: Path | None = None, *, tasks: Collection[str] | None = None) -> list[Question]:
    """Return the questions of ``tasks``, by default of all, in file order.

    ``folder`` holds ``bbh.jsonl.gz``; None = the development data. Raises UnavailableError where
    it is absent, InputError for a file that cannot be read, UsageError for an unknown task.
    """
    path = (folder or data_folder("bbh")) / "bbh.jsonl.gz"
    try:
        rows = [(row["task"], row["input"], row["target"]) for row in read_json_lines(path)]
    except KeyError as error:
        raise InputError(f"{path}: a row has no {error}; restore the file") from error
    answers: dict[str, set[str]] = {}
    for task, _, answer in rows:
        answers.setdefault(task, set()).add(answer)
    for task in tasks or ():
        if task not in answers:
            raise unknown_name("BIG-Bench Hard task", task, answers)
    return [
        Question(
            task=task,
            text=text,
            answer=_bare(answer),
            choices=_choices(text, _bare(answer), answers[task]),
        )
        for task, text, answer in rows
        if tasks is None or task in tasks
    ]


def _bare(answer: str) -> str:
    letter = re.fullmatch(r"\(([A-Z])\)", answer)
    return letter.group(1) if letter else answer.strip()


def _choices(text: str, answer: str, answers: set[str]) -> tuple[str, ...]:
    _, _, listed = text.rpartition("\nOptions:\n")
    found = [c.strip() for c in _LETTER.findall(listed) or _DASHED.findall(listed)]
    if not found and len(answers) <= _MOST:
        found = sorted(answers)
    return tuple(found) if answer in found else ()
