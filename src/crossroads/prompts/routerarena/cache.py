"""Answers already paid for: one file per model, keyed by global index, reused by every router.

An answer is on the disk before it counts, so that a run that is killed loses nothing; a last line
that was cut off by the kill is dropped when the file is next read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from crossroads.core.errors import InputError
from crossroads.core.journal import append_line, read_lines
from crossroads.prompts.outcomes import prompt_hash


class ResponseCache:
    """The answers of one model, in ``folder/<model>.jsonl``.

    Parameters
    ----------
    folder : made when the first answer comes
    model : its canonical name
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.path = folder / f"{quote(model, safe='')}.jsonl"
        self._answers = self._read()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, index: str, prompt: str) -> dict[str, Any] | None:
        """Return the result kept for a row; None where there is none for this prompt."""
        kept = self._answers.get(index)
        if kept is None or kept["prompt_hash"] != prompt_hash(prompt):
            return None
        result: dict[str, Any] = kept["result"]
        return result

    def put(self, index: str, prompt: str, result: Mapping[str, Any]) -> None:
        """Keep a result; it is on the disk on return. Raises InputError where it cannot be."""
        entry = {"index": index, "prompt_hash": prompt_hash(prompt), "result": dict(result)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}") from error
        append_line(self.path, entry)
        self._answers[index] = entry

    def _read(self) -> dict[str, dict[str, Any]]:
        return dict(read_lines(self.path, _keyed, remedy="delete that line to ask again"))


def _keyed(entry: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(entry["result"], dict):
        raise TypeError("a result is an object")
    return entry["index"], {key: entry[key] for key in ("prompt_hash", "result")}
