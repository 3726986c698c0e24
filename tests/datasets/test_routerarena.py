from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.datasets.routerarena import (
    BLOOM_LEVELS,
    DOMAINS,
    domain_of,
    metric_of,
    read_rows,
    source_of,
)

PUBLISHED = {
    "Category": "Physics",
    "Domain": "5 Science",
    "Dataset name": "MMLUPro",
    "Global Index": "MMLUPro_physics_12",
    "Context": "",
    "Question": "How fast is light?",
    "Options": ["slow", "fast"],
    "Answer": "1",
    "Metadata": "{}",
    "Keywords": "light",
    "Difficulty": "Easy",
}


def written(folder: Path, records: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    if path.suffix == ".json":
        path.write_text(json.dumps(records), "utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_text("\n".join(json.dumps(r) for r in records), "utf-8")
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_published_rows_are_read_from_every_format(tmp_path: Path, name: str) -> None:
    (row,) = read_rows(written(tmp_path, [PUBLISHED], name))
    assert row.global_index == "MMLUPro_physics_12"
    assert (row.source, row.category, row.domain) == ("MMLUPro", "Physics", "science")
    assert (row.options, row.answers) == (("slow", "fast"), ("1",))
    assert (row.metric, row.difficulty, row.bloom) == ("mcq_accuracy", "easy", "")


def test_fields_of_other_versions_are_known_too(tmp_path: Path) -> None:
    record = {
        "global index": "QANTA_History_3",
        "prompt_formatted": "as sent",
        "bloom_level": "Remember",
        "Answer": None,
    }
    (row,) = read_rows(written(tmp_path, [record]))
    assert (row.source, row.metric, row.prompt) == ("QANTA", "exact_match", "as sent")
    assert row.bloom in BLOOM_LEVELS
    assert row.answers == ()  # hidden, as in the full split


def test_a_separator_of_paragraphs_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    record = {**PUBLISHED, "Question": "One.\u2028Two."}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(record, ensure_ascii=False), "utf-8")
    assert read_rows(path)[0].question == "One.\u2028Two."


def test_a_split_has_its_published_size(tmp_path: Path) -> None:
    records = [{**PUBLISHED, "Global Index": f"MMLU_{n}"} for n in range(809)]
    path = written(tmp_path, records)
    assert len(read_rows(path, split="sub_10")) == 809
    assert len(read_rows(path, split="robustness")) == 809  # of no fixed size
    with pytest.raises(InputError, match="'full' has 8400 rows, the file has 809"):
        read_rows(path, split="full")
    with pytest.raises(UsageError, match="sub_10"):
        read_rows(path, split="sub_100")


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([PUBLISHED, PUBLISHED], "row 2: global index 'MMLUPro_physics_12' occurs twice"),
        ([{**PUBLISHED, "Global Index": ""}], "row 1: field 'Global Index' is missing"),
        ([{**PUBLISHED, "Question": None}], "are both empty"),
        ([], "holds no row"),
        ([3], "row 1: expected an object"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, records: list[Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_rows(written(tmp_path, records))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rows.txt", "x", "expected a .json, .jsonl or .parquet"),
        ("rows.json", "{}", "expected a list"),
        ("rows.json", "[", "cannot be read"),
        ("rows.parquet", "no parquet", "cannot be read"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: str, told: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=told):
        read_rows(path)
    with pytest.raises(InputError, match="no such file"):
        read_rows(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("index", "source", "metric"),
    [
        ("MMLUPro_computer science_9430", "MMLUPro", "mcq_accuracy"),
        ("Ethics_justice_12", "Ethics_justice", "mcq_accuracy"),
        ("ChessInstruct_mcq_3", "ChessInstruct_mcq", "mcq_accuracy"),
        ("ChessInstruct_71", "ChessInstruct", "chess_accuracy"),
        ("WMT19-de-en_4", "WMT19-de-en", "meteor_score"),
        ("SuperGLUE-RC_1", "SuperGLUE-RC", "superglue_exact_match"),
        ("SuperGLUE-CausalReasoning_1", "SuperGLUE-CausalReasoning", "mcq_accuracy"),
        ("GeoGraphyData_100k_5", "GeoGraphyData", "exact_match"),
        ("LiveCodeBench_2", "LiveCodeBench", "code_accuracy"),
        ("AIME_106", "AIME", "math_metric"),
    ],
)
def test_an_index_tells_source_and_metric(index: str, source: str, metric: str) -> None:
    assert source_of(index) == source
    assert metric_of(source) == metric


def test_domains_by_number_or_name() -> None:
    assert len(DOMAINS) == 9
    assert domain_of("510") == "science"
    assert domain_of("0 Computer science") == "computer science and general"
    assert domain_of("200") == domain_of("Religion") == "philosophy and psychology"
    assert domain_of("Arts & Recreation") == "arts and recreation"
    assert domain_of("Philosophy") == "philosophy and psychology"
    assert domain_of("Sports") == "Sports"
    assert domain_of("") == ""
