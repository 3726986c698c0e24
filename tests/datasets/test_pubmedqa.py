from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crossroads.core.errors import InputError
from crossroads.datasets import pubmedqa


def _written(folder: Path, studies: Any, test: Any) -> Path:
    for name, content in (("ori_pqal", studies), ("test_ground_truth", test)):
        (folder / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    return folder


def _study(decision: str) -> dict[str, Any]:
    return {
        "QUESTION": "Does it help?", "CONTEXTS": ["We asked."], "LONG_ANSWER": "It does.",
        "final_decision": decision,
    }  # fmt: skip


def test_the_published_test_half_is_kept_apart(tmp_path: Path) -> None:
    folder = _written(tmp_path, {"1": _study("yes"), "2": _study("no")}, {"2": "no"})
    found = pubmedqa.load(folder)
    assert [study.pmid for study in found.train] == ["1"]
    assert [study.decision for study in found.test] == ["no"]
    assert found.train[0].conclusion == "It does."


def test_an_item_of_another_kind_is_named(tmp_path: Path) -> None:
    folder = _written(tmp_path, {"1": {"QUESTION": "?"}}, {})
    with pytest.raises(InputError, match="an item lacks 'CONTEXTS'"):
        pubmedqa.load(folder)


def test_the_published_counts_are_found(shared_folder: Callable[[str], Path]) -> None:
    found = pubmedqa.load(shared_folder("pubmedqa"))
    assert len(found.train) == 500
    assert Counter(s.decision for s in found.test) == {"yes": 276, "no": 169, "maybe": 55}
