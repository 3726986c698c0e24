from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.datasets import tatoeba


def _written(folder: Path, *rows: dict[str, str]) -> Path:
    content = "\n".join(json.dumps(row) for row in rows).encode()
    (folder / "tatoeba.jsonl.gz").write_bytes(gzip.compress(content))
    return folder


def test_languages_are_chosen_by_code(tmp_path: Path) -> None:
    rows = [{"lang": code, "text": code, "eng": "Hi."} for code in ("deu", "fra", "deu")]
    folder = _written(tmp_path, *rows)
    assert len(tatoeba.load(folder)) == 3
    assert [pair.language for pair in tatoeba.load(folder, languages=["deu"])] == ["deu", "deu"]
    with pytest.raises(UsageError, match="unknown Tatoeba language 'deut'; did you mean 'deu'"):
        tatoeba.load(folder, languages=["deut"])


def test_a_row_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tatoeba\.jsonl\.gz: a row has no 'eng'"):
        tatoeba.load(_written(tmp_path, {"lang": "deu", "text": "Hallo."}))


def test_the_published_counts_are_found(shared_folder: Callable[[str], Path]) -> None:
    found = tatoeba.load(shared_folder("tatoeba"))
    assert len(found) == 88_877
    assert len({pair.language for pair in found}) == 112
