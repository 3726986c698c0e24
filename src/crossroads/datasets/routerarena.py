"""RouterArena (arXiv 2510.00202): its published rows, and recorded outcomes of its 10 % split.

``read_rows`` reads the rows of a split from a file the user has: JSON, JSON lines or Parquet with
the published field names (``Global Index``, ``Question``, ...), or with the names used here.

``load`` reads recorded outcomes: 809 prompts, two models, measured tokens and cost. The text is
there for 423 prompts whose origin permits it; the others have none. ``domain`` is the source data
set. Scores are fractional where the metric is; the one below zero (a METEOR score, rounding of that
metric) is read as zero.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.core.errors import InputError, unknown_name
from crossroads.datasets import common

FILES = ("sub10_two_models.csv.gz",)
POOL = "routerarena"
SOURCE = "RouterArena sub_10, replayed outcomes of two models; measured tokens and cost"
_MODELS = {"haiku": "claude-3-haiku-20240307", "gemini": "gemini-2.0-flash-001"}

# The robustness split grew between publications, so that no size is demanded of it.
SPLIT_SIZES: Mapping[str, int | None] = {"full": 8400, "sub_10": 809, "robustness": None}

# The classes of the Dewey Decimal Classification by first digit, religion folded into philosophy.
DOMAINS = (
    "computer science and general",
    "philosophy and psychology",
    "social science",
    "language",
    "science",
    "technology",
    "arts and recreation",
    "literature",
    "history",
)
BLOOM_LEVELS = ("remember", "understand", "apply", "analyze", "evaluate", "create")

# How the answers of a source are compared; sources that are not named are multiple choice.
_METRIC_OF_SOURCE = {
    **dict.fromkeys(("AIME", "AsDiv", "FinQA", "GSM8K", "MATH"), "math_metric"),
    **dict.fromkeys(("QANTA", "GeoGraphyData"), "exact_match"),
    **dict.fromkeys(("NarrativeQA", "WMT19"), "meteor_score"),
    "LiveCodeBench": "code_accuracy",
    "ChessInstruct": "chess_accuracy",
    **dict.fromkeys(
        (
            "SuperGLUE-Entailment",
            "SuperGLUE-QA",
            "SuperGLUE-RC",
            "SuperGLUE-Wic",
            "SuperGLUE-Wsc",
        ),
        "superglue_exact_match",
    ),
    "SuperGLUE-ClozeTest": "superglue_clozetest",
}
_DEWEY_CLASS = {0: 0, 1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7, 9: 8}


@dataclass(frozen=True, kw_only=True, slots=True)
class ArenaRow:
    """One query of the data set.

    Attributes
    ----------
    global_index : ``<Source>_<n>``, unique
    source : the data set it comes from
    domain : one of ``DOMAINS``, or what the file says; empty where it says nothing
    category : one of 44, as published
    question, context, options : its parts; the options without their letters
    answers : right answers, any of them will do; empty where they are hidden
    metric : how an answer is compared with them (``crossroads.prompts.routerarena``)
    bloom : level of Bloom's taxonomy; empty where unknown
    difficulty : easy, medium or hard; empty where unknown
    prompt : the text sent to a model; empty to render it from the parts
    """

    global_index: str
    source: str
    domain: str = ""
    category: str = ""
    question: str = ""
    context: str = ""
    options: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    metric: str = "mcq_accuracy"
    bloom: str = ""
    difficulty: str = ""
    prompt: str = ""


def read_rows(path: str | Path, *, split: str | None = None) -> list[ArenaRow]:
    """Return the rows of a file: ``.json`` (a list), ``.jsonl`` or ``.parquet``.

    ``split`` demands the published number of rows. Raises InputError naming file, row and field,
    UsageError for an unknown split.
    """
    path = Path(path)
    if split is not None and split not in SPLIT_SIZES:
        raise unknown_name("split", split, SPLIT_SIZES)
    rows: list[ArenaRow] = []
    seen: set[str] = set()
    for number, record in enumerate(_records(path), start=1):
        row = _row(record, f"{path}: row {number}")
        if row.global_index in seen:
            raise InputError(
                f"{path}: row {number}: global index {row.global_index!r} occurs twice; keep one"
            )
        seen.add(row.global_index)
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: holds no row; give a file of RouterArena rows")
    size = SPLIT_SIZES.get(split or "")
    if size is not None and len(rows) != size:
        raise InputError(
            f"{path}: split {split!r} has {size} rows, the file has {len(rows)}; "
            "fetch it again or name no split"
        )
    return rows


def source_of(global_index: str) -> str:
    """Return the source a global index names: what precedes its number and sub-category."""
    parts = global_index.split("_")
    is_pair = parts[0] in ("Ethics", "ChessInstruct") and len(parts) > 2
    return "_".join(parts[:2]) if is_pair else parts[0]


def metric_of(source: str) -> str:
    """Return the name of the metric that answers of a source are judged by."""
    if source.startswith("ChessInstruct_mcq"):
        return "mcq_accuracy"
    for name in (source, source.partition("_")[0], source.partition("-")[0]):
        if name in _METRIC_OF_SOURCE:
            return _METRIC_OF_SOURCE[name]
    return "mcq_accuracy"


def domain_of(text: str) -> str:
    """Return the domain a label means: a Dewey number (``510`` is science), or one of the names.

    A label that means none of the nine is kept as it is.
    """
    label = " ".join(text.replace("&", "and").split())
    number = re.match(r"(\d)\d{0,2}\b", label)
    if number:
        return DOMAINS[_DEWEY_CLASS[int(number[1])]]
    if label.casefold().startswith("religion"):
        return DOMAINS[1]
    for domain in DOMAINS:
        if label and domain.startswith(label.casefold()):
            return domain
    return text.strip()


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.is_file():
        raise InputError(f"rows {str(path)!r}: no such file; give a .json, .jsonl or .parquet file")
    if path.suffix == ".parquet":
        yield from _parquet_records(path)
        return
    if path.suffix not in (".json", ".jsonl"):
        raise InputError(f"rows {str(path)!r}: expected a .json, .jsonl or .parquet file")
    try:
        text = path.read_text("utf-8")
        # Not splitlines(), which also parts a text at the separators of paragraphs it may hold.
        lines = [line for line in text.split("\n") if line.strip()]
        found = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a JSON file in UTF-8") from error
    if not isinstance(found, list):
        raise InputError(f"{path}: expected a list of rows, got {type(found).__name__}")
    for number, record in enumerate(found, start=1):
        if not isinstance(record, dict):
            raise InputError(f"{path}: row {number}: expected an object, got {record!r:.40}")
        yield record


def _parquet_records(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield from pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a Parquet file") from error


def _field(record: Mapping[str, Any], *names: str) -> Any:
    """Return the first field of these names, whatever their case, spaces and underscores."""
    found = {re.sub(r"[ _-]", "", str(key)).casefold(): value for key, value in record.items()}
    for name in names:
        value = found.get(name)
        if value is not None and value != "":
            return value
    return None


def _row(record: Mapping[str, Any], where: str) -> ArenaRow:
    index = _text(_field(record, "globalindex"))
    if not index:
        raise InputError(f"{where}: field 'Global Index' is missing or empty")
    source = _text(_field(record, "datasetname", "source")) or source_of(index)
    options = _field(record, "options")
    row = ArenaRow(
        global_index=index,
        source=source,
        domain=domain_of(_text(_field(record, "domain"))),
        category=_text(_field(record, "category", "subcategory")),
        question=_text(_field(record, "question")),
        context=_text(_field(record, "context")),
        options=_texts(options),
        answers=_texts(_field(record, "answers", "answer", "reference")),
        metric=_text(_field(record, "metric")) or metric_of(source),
        bloom=_text(_field(record, "bloomlevel", "bloom")).casefold(),
        difficulty=_text(_field(record, "difficulty")).casefold(),
        prompt=_text(_field(record, "promptformatted", "prompt")),
    )
    if not row.question and not row.prompt:
        raise InputError(f"{where}: fields 'Question' and 'prompt_formatted' are both empty")
    return row


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(str(entry) for entry in value)
    return (str(value),)


def load(folder: Path) -> Any:
    """Return the long outcome table (Arrow)."""
    import pyarrow as pa

    table = common.read_csv(folder / FILES[0], {"prompt": pa.string()})

    def cells(quantity: str) -> Any:
        return common.numbers(table, [f"{short}_{quantity}" for short in _MODELS])

    return common.long_form(
        models=list(_MODELS.values()),
        score=np.maximum(cells("score"), 0.0),
        per_prompt={
            "prompt_id": table["global_index"].to_pylist(),
            "prompt": pa.array(table["prompt"].to_pylist(), pa.string()),
            "domain": table["source_dataset"].to_pylist(),
        },
        per_cell={
            "cost": cells("cost_usd"),
            "input_tokens": cells("in_tok"),
            "output_tokens": cells("out_tok"),
        },
    )
