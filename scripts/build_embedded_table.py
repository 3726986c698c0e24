"""Build the embedded outcome table from the MMLU-Pro data set.

Usage: python scripts/build_embedded_table.py [OUT]

Reads the folder ``mmlu_pro_outcomes`` of the data root (``CROSSROADS_DATA``) and writes
``src/crossroads/prompts/data/mmlu_pro.npz``: facts only, no text. The same data give the same
bytes: members are stored uncompressed, in order, with a fixed date.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.datasets.mmlu_pro import read_answers, read_questions
from crossroads.datasets.paths import data_folder
from crossroads.models.encoders import StaticEncoder
from crossroads.prompts.artefact import npz_bytes
from crossroads.prompts.embedded import FILE, pack_lengths, pack_unit_rows
from crossroads.prompts.outcomes import prompt_hash

OUT = Path(__file__).resolve().parents[1] / "src/crossroads/prompts/data" / FILE
LIMIT = 4 * 2**20  # bytes


def build(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of the table, prompts in the order of the predictions."""
    questions = {q["id"]: q for q in read_questions(folder)}
    ids, models, letters, characters = read_answers(folder)
    rows = [questions[i] for i in ids]
    texts = [q["question"] for q in rows]
    key = np.array([q["answer"] for q in rows], dtype=object)[:, None]
    subjects = sorted({q["src"] for q in rows})
    categories = sorted({q["category"] for q in rows})
    embedding, scale = pack_unit_rows(StaticEncoder().encode(texts))
    return {
        "models": np.array(models),
        "categories": np.array(categories),
        "subjects": np.array(subjects),
        "id": np.array(ids, dtype=np.uint16),
        "category": np.array([categories.index(q["category"]) for q in rows], dtype=np.uint8),
        "subject": np.array([subjects.index(q["src"]) for q in rows], dtype=np.uint8),
        "num_options": np.array([len(q["options"]) for q in rows], dtype=np.uint8),
        "input_chars": np.array([q["input_chars"] for q in rows], dtype=np.uint16),
        "prompt_hash": np.array([prompt_hash(text) for text in texts], dtype=np.uint64),
        "correct": np.packbits(letters == key),
        "length": pack_lengths(np.where(letters == "", np.nan, characters)),
        "embedding": embedding,
        "embedding_scale": scale,
    }


def main(out: Path = OUT) -> None:
    """Write the table and say how large it is."""
    data = npz_bytes(build(data_folder("mmlu_pro_outcomes")))
    if len(data) > LIMIT:
        sys.exit(f"the table takes {len(data)} bytes, more than {LIMIT}; drop a column")
    partial = out.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(out)
    print(f"{out.name}: {len(data):,} bytes")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
