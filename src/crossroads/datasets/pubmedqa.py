"""PubMedQA: 1,000 biomedical questions answered by yes, no or maybe (Jin et al. 2019), MIT licence.

500 of them are the published test part. ``conclusion`` is the abstract's last section, from which
people decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crossroads.core.errors import InputError
from crossroads.datasets.common import read_json
from crossroads.datasets.paths import data_folder

DECISIONS = ("yes", "no", "maybe")


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """One question about one abstract; ``sections`` are those before the conclusion."""

    pmid: str
    question: str
    sections: tuple[str, ...]
    conclusion: str
    decision: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Studies:
    """Both halves, in file order."""

    train: tuple[Study, ...]
    test: tuple[Study, ...]


def load(folder: Path | None = None) -> Studies:
    """Return the studies.

    ``folder`` holds ``ori_pqal.json.gz`` and ``test_ground_truth.json.gz``; None = the development
    data. Raises UnavailableError where it is absent, InputError for files that cannot be read.
    """
    folder = folder or data_folder("pubmedqa")
    path = folder / "ori_pqal.json.gz"
    published = set(read_json(folder / "test_ground_truth.json.gz"))
    try:
        studies = [
            Study(
                pmid=pmid,
                question=item["QUESTION"],
                sections=tuple(item["CONTEXTS"]),
                conclusion=item["LONG_ANSWER"],
                decision=item["final_decision"],
            )
            for pmid, item in read_json(path).items()
        ]
    except (KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: an item lacks {error}; restore the file") from error
    return Studies(
        train=tuple(study for study in studies if study.pmid not in published),
        test=tuple(study for study in studies if study.pmid in published),
    )
