"""MMLU's questions by subject, and three disjoint folds of subjects to hold out.

They come from RouteLLM's outcome tables in the development data; nothing of them ships.
"""

from __future__ import annotations

import csv
import gzip

import numpy as np

from crossroads.datasets.paths import data_folder
from crossroads.prompts.preferences.subjects import DOMAINS

NUM_FOLDS = 3
_SPLIT_SEED = 57


def mmlu_questions() -> dict[str, list[str]]:
    """Return the questions of each domain, with their options.

    Raises UnavailableError naming the data set where it is not on this machine.
    """
    path = data_folder("routellm_mmlu_gsm8k") / "mmlu_responses.csv.gz"
    questions: dict[str, list[str]] = {domain: [] for domain in DOMAINS}
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["subject"] in questions:
                questions[row["subject"]].append(row["prompt"])
    return questions


def fold_subjects(fold: int) -> frozenset[str]:
    """Return the subjects held out in a fold; the three folds part the domains."""
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(DOMAINS))
    return frozenset(DOMAINS[i] for i in order[fold::NUM_FOLDS])
