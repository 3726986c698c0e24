"""The prompts file: what is asked, what a right answer looks like, and how answers are scored."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.scorers import DEFAULT_SCORER, check_scorer

_ALTERNATIVES = " | "
_WHOLE = ("code", "regex")  # scorers whose reference is one text


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptItem:
    """One prompt with what a right answer looks like.

    Attributes
    ----------
    prompt_id, prompt : as in the outcome table
    references : right answers; any of them will do
    scorer : how answers are compared with them (``crossroads.prompts.scorers``)
    domain, split : carried over to the outcome table
    """

    prompt_id: str
    prompt: str
    references: tuple[str, ...]
    scorer: str = DEFAULT_SCORER
    domain: str | None = None
    split: str | None = None


def read_prompts(path: str | Path) -> list[PromptItem]:
    """Read prompts from CSV or JSON lines with the columns ``prompt_id, prompt, reference`` and,
    if wished, ``scorer, domain, split``.

    Several references are a list in JSON, or parted by " | ". A domain is text; numbers become
    theirs. A split is ``train`` or ``test``, for every prompt or for none. Raises InputError naming
    file, row and column.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"prompts {str(path)!r}: no such file; give a .jsonl or .csv file")
    items: list[PromptItem] = []
    seen: set[str] = set()
    for number, row in enumerate(_rows(path), start=1):
        where = f"prompts {path}: row {number}"
        item = _prompt_item(row, where)
        if item.prompt_id in seen:
            raise InputError(f"{where}: prompt_id {item.prompt_id!r} occurs twice; rename one")
        seen.add(item.prompt_id)
        items.append(item)
    if not items:
        raise InputError(f"prompts {path}: the file holds no prompt")
    _check_split(items, path)
    return items


def _check_split(items: Sequence[PromptItem], path: Path) -> None:
    without = [number for number, item in enumerate(items, start=1) if item.split is None]
    if 0 < len(without) < len(items):
        raise InputError(
            f"prompts {path}: row {without[0]}: column 'split' is empty while other rows have one; "
            "mark every prompt, or none"
        )


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"prompts {path}: not UTF-8 (byte {error.start}); convert it") from error
    if path.suffix == ".csv":
        yield from csv.DictReader(io.StringIO(text, newline=""))
        return
    if path.suffix != ".jsonl":
        raise InputError(f"prompts {path}: expected a .jsonl or .csv file")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise InputError(f"prompts {path}: row {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"prompts {path}: row {number}: expected an object, got {line[:40]!r}")
        yield row


def _prompt_item(row: Mapping[str, Any], where: str) -> PromptItem:
    for column in ("prompt_id", "prompt", "reference"):
        if row.get(column) in (None, "", []):
            raise InputError(f"{where}: column {column!r} is missing or empty")
    given = row["reference"]
    scorer = str(row.get("scorer") or DEFAULT_SCORER)
    if isinstance(given, list):
        references = given
    else:  # tests and patterns hold bars of their own
        is_code = scorer.partition(":")[0] in _WHOLE
        references = [given] if is_code else str(given).split(_ALTERNATIVES)
    try:
        check_scorer(scorer)
    except UsageError as error:
        raise InputError(f"{where}: column 'scorer': {error}") from error
    return PromptItem(
        prompt_id=str(row["prompt_id"]),
        prompt=str(row["prompt"]),
        references=tuple(str(reference).strip() for reference in references),
        scorer=scorer,
        domain=_domain(row.get("domain"), where),
        split=_split(row.get("split"), where),
    )


def _domain(given: Any, where: str) -> str | None:
    if given in (None, ""):
        return None
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise InputError(f"{where}: column 'domain': expected text, got {given!r:.40}")
    return str(given)


def _split(given: Any, where: str) -> str | None:
    if given in (None, ""):
        return None
    if given not in ("train", "test"):
        raise InputError(
            f"{where}: column 'split': expected 'train', 'test' or nothing, got {given!r:.40}"
        )
    return str(given)
