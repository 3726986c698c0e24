"""RouterArena, 10 % split: 809 prompts, two models, measured tokens and cost (arXiv 2510.00202).

The text is there for 423 prompts whose origin permits it; the others have none. ``domain`` is the
source data set. Scores are fractional where the metric is; the one below zero (a METEOR score,
rounding of that metric) is read as zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from crossroads.datasets import common

FILES = ("sub10_two_models.csv.gz",)
POOL = "routerarena"
SOURCE = "RouterArena sub_10, replayed outcomes of two models; measured tokens and cost"
_MODELS = {"haiku": "claude-3-haiku-20240307", "gemini": "gemini-2.0-flash-001"}


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
