"""RouteLLM's weak / strong outcomes on MMLU and GSM8K (arXiv 2406.18665).

14,042 MMLU and 1,319 GSM8K prompts answered by Mixtral-8x7B-Instruct (weak) and GPT-4-1106
(strong). No token counts were published: cost is the share of calls sent to the strong model.
``domain`` is the MMLU subject, or ``gsm8k``. The few prompts close to RouteLLM's own training data
are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from crossroads.datasets import common

FILES = ("mmlu_responses.csv.gz", "gsm8k_responses.csv.gz")
POOL = "routellm"
SOURCE = (
    "RouteLLM, replayed outcomes of Mixtral-8x7B and GPT-4-1106 on MMLU and GSM8K; "
    "cost 1 = one call of the strong model"
)
WEAK, STRONG = "mixtral-8x7b-instruct", "gpt-4-1106-preview"
_COLUMNS = ["mixtral_8x7b_correct", "gpt4_1106_correct"]


def load(folder: Path) -> Any:
    """Return the long outcome table (Arrow); prompt ids are ``mmlu-00000`` and ``gsm8k-0000``."""
    import pyarrow as pa

    texts = {"prompt": pa.string(), "subject": pa.string()}
    mmlu, gsm8k = (common.read_csv(folder / name, texts) for name in FILES)
    count, more = len(mmlu), len(gsm8k)
    return common.long_form(
        models=[WEAK, STRONG],
        score=np.vstack([common.numbers(t, _COLUMNS) for t in (mmlu, gsm8k)]),
        per_prompt={
            "prompt_id": [f"mmlu-{n:05d}" for n in range(count)]
            + [f"gsm8k-{n:04d}" for n in range(more)],
            "prompt": mmlu["prompt"].to_pylist() + gsm8k["prompt"].to_pylist(),
            "domain": mmlu["subject"].to_pylist() + ["gsm8k"] * more,
            "chance": [0.25] * count + [0.0] * more,
        },
        per_cell={},
    )
