"""ZeroEval: GSM8K and MATH level 5, 2,040 prompts, up to 55 language models.

29 models answered both tasks; the others have missing cells. Graded anew from the raw answers.
``domain`` is ``gsm`` or ``math-l5``. Tokens are estimated from characters; o1 models hide their
reasoning, so their lengths, and costs, are lower bounds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from crossroads.core.errors import InputError
from crossroads.datasets import common

FILES = ("prompts.jsonl.gz", "correct.csv.gz", "output_chars.csv.gz")
POOL = "zeroeval"
SOURCE = (
    "ZeroEval (GSM8K and MATH level 5), replayed outcomes; "
    "costs estimated from answer lengths and list prices"
)


def load(folder: Path) -> Any:
    """Return the long outcome table (Arrow)."""
    prompts = list(common.read_json_lines(folder / "prompts.jsonl.gz"))
    correct = common.read_csv(folder / "correct.csv.gz", {})
    lengths = common.read_csv(folder / "output_chars.csv.gz", {})
    ids = [p["id"] for p in prompts]
    if correct["id"].to_pylist() != ids or lengths["id"].to_pylist() != ids:
        raise InputError(f"{folder}: its three files list different prompts; copy them again")
    models = correct.schema.names[1:]
    input_chars = np.array([p["prompt_chars"] for p in prompts], dtype=np.float64)[:, None]
    return common.long_form(
        models=models,
        score=common.numbers(correct, models),
        per_prompt={
            "prompt_id": ids,
            "prompt": [p["prompt"] for p in prompts],
            "domain": [p["task"] for p in prompts],
        },
        per_cell={
            "input_tokens": input_chars / common.CHARS_PER_TOKEN,
            "output_tokens": common.numbers(lengths, models) / common.CHARS_PER_TOKEN,
        },
    )
