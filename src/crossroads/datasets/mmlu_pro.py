"""MMLU-Pro: 12,032 questions answered by 29 language models of 2024 (arXiv 2406.01574).

``prompt`` is the question without its options, which is what a router is given; ``input_tokens``
counts question and options. An answer without a readable letter is wrong. Three models lack some
questions; those cells are absent. The 33 questions whose key was revised are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from crossroads.core.errors import InputError
from crossroads.datasets import common

_QUESTIONS = ("questions-1.jsonl.gz", "questions-2.jsonl.gz")
FILES = (*_QUESTIONS, "predictions.csv.gz", "output_chars.csv.gz")
POOL = "mmlu-pro"
SOURCE = (
    "MMLU-Pro, replayed outcomes of 2024 models; "
    "costs estimated from answer lengths and declared list prices"
)


def read_questions(folder: Path) -> list[dict[str, Any]]:
    """Return the questions in file order, with ``input_chars`` (question and options) added."""
    questions = [q for name in _QUESTIONS for q in common.read_json_lines(folder / name)]
    for question in questions:
        question["input_chars"] = len(question["question"]) + sum(map(len, question["options"]))
    return questions


def read_answers(folder: Path) -> tuple[list[int], list[str], Any, Any]:
    """Return question ids, model names, letters (N, K; empty = not run), answer characters (N, K).

    Characters are NaN where the model was not run.
    """
    import pyarrow as pa

    models = common.read_csv(folder / "predictions.csv.gz", {}).schema.names[1:]
    predictions = common.read_csv(
        folder / "predictions.csv.gz", {"id": pa.int64(), **dict.fromkeys(models, pa.string())}
    )
    lengths = common.read_csv(
        folder / "output_chars.csv.gz", {"id": pa.int64(), **dict.fromkeys(models, pa.float64())}
    )
    if not predictions["id"].equals(lengths["id"]):
        raise InputError(f"{folder}: predictions and output_chars list different questions")
    letters = np.column_stack(
        [predictions[m].fill_null("").to_numpy(zero_copy_only=False) for m in models]
    )
    return predictions["id"].to_pylist(), models, letters, common.numbers(lengths, models)


def load(folder: Path) -> Any:
    """Return the long outcome table (Arrow)."""
    questions = {q["id"]: q for q in read_questions(folder)}
    ids, models, letters, chars = read_answers(folder)
    try:
        rows = [questions[i] for i in ids]
    except KeyError as error:
        raise InputError(f"{folder}: question {error} has answers but no text") from error
    key = np.array([q["answer"] for q in rows], dtype=object)[:, None]
    score = np.where(letters == "", np.nan, letters == key)
    input_chars = np.array([q["input_chars"] for q in rows], dtype=np.float64)[:, None]
    return common.long_form(
        models=models,
        score=score,
        per_prompt={
            "prompt_id": [str(i) for i in ids],
            "prompt": [q["question"] for q in rows],
            "domain": [q["category"] for q in rows],
            "subject": [q["src"] for q in rows],
            "chance": [1 / len(q["options"]) for q in rows],
        },
        per_cell={
            "input_tokens": input_chars / common.CHARS_PER_TOKEN,
            "output_tokens": chars / common.CHARS_PER_TOKEN,
        },
    )
