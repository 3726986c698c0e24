from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from crossroads.core.errors import InputError
from crossroads.datasets import gsm8k

ANSWER = "Half of 2,400 is 2400/2 = <<2400/2=1200>>1200.\n#### 1,200"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for part in ("train", "test"):
        line = json.dumps({"question": f"{part}?", "answer": ANSWER})
        (tmp_path / f"{part}.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    return tmp_path


def test_the_calculators_marks_are_taken_out_unless_asked_for(small: Path) -> None:
    (problem,) = gsm8k.load(small).train
    assert problem.answer == "Half of 2,400 is 2400/2 = 1200.\n#### 1,200"
    assert gsm8k.load(small, marks=True).test[0].answer == ANSWER


def test_the_result_is_the_number_of_the_last_line(small: Path) -> None:
    assert gsm8k.load(small).test[0].result == "1200"


def test_the_published_counts_are_found(shared_folder: Callable[[str], Path]) -> None:
    found = gsm8k.load(shared_folder("gsm8k"))
    assert (len(found.train), len(found.test)) == (7_473, 1_319)
    assert not any("<<" in problem.answer for problem in found.train)
    assert all(float(problem.result) == float(problem.result) for problem in found.test)


def test_a_broken_file_is_named(small: Path) -> None:
    (small / "test.jsonl.gz").write_bytes(b"{}")
    with pytest.raises(InputError, match=r"test\.jsonl\.gz: cannot be read"):
        gsm8k.load(small)
