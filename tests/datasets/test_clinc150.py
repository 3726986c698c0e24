from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from crossroads.core.errors import InputError
from crossroads.datasets import clinc150


@pytest.fixture
def small(tmp_path: Path) -> Path:
    rows = {
        "train": [["pay My bill", "pay"], ["my flight", "fly"], ["book flight", "fly"]],
        "val": [["pay flight", "fly"]],
        "test": [["my unheard of question now", "pay"]],
        "oos_train": [["sing", "oos"]],
    }
    for name, content in (
        ("data_full", rows), ("domains", {"money": ["pay"], "travel": ["fly"]})
    ):  # fmt: skip
        path = tmp_path / f"{name}.json.gz"
        path.write_bytes(gzip.compress(json.dumps(content).encode()))
    return tmp_path


def test_frequent_words_of_the_training_part_get_ids(small: Path) -> None:
    found = clinc150.load(small)
    assert found.words == ("<padding>", "<unknown>", "flight", "my")
    assert found.classes == ("money", "travel")
    assert found.train.token.tolist() == [[1, 3, 1, 0, 0], [3, 2, 0, 0, 0], [1, 2, 0, 0, 0]]
    assert found.train.label.tolist() == [0, 1, 1]
    assert found.test.token.tolist() == [[3, 1, 1, 1, 1]]
    assert found.test.mask.all()
    assert found.valid.mask.tolist() == [[True, True, False, False, False]]


def test_labels_may_be_intents(small: Path) -> None:
    found = clinc150.load(small, label="intent")
    assert found.classes == ("fly", "pay")
    assert found.train.label.tolist() == [1, 0, 0]


def test_the_published_counts_are_found(shared_folder: Callable[[str], Path]) -> None:
    found = clinc150.load(shared_folder("clinc150"))
    assert [len(part.label) for part in (found.train, found.valid, found.test)] == [
        15_000, 3_000, 4_500]  # fmt: skip
    assert len(found.classes) == 10
    assert len(clinc150.load(shared_folder("clinc150"), label="intent").classes) == 150


def test_requests_keep_their_wording(small: Path) -> None:
    first, second, _ = clinc150.load_requests(small).train
    assert (first.text, first.intent, first.domain) == ("pay My bill", "pay", "money")
    assert second.domain == "travel"


def test_domains_are_in_the_data_sets_order(shared_folder: Callable[[str], Path]) -> None:
    found = clinc150.load_domains(shared_folder("clinc150"))
    assert (list(found)[:1], list(found)[-1:]) == (["banking"], ["meta"])
    assert {len(intents) for intents in found.values()} == {15}


def test_a_broken_file_is_named(small: Path) -> None:
    (small / "domains.json.gz").write_bytes(b"{}")
    with pytest.raises(InputError, match=r"domains\.json\.gz: cannot be read"):
        clinc150.load(small)
