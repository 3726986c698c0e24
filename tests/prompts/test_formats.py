"""Files that cannot be read: damaged, of the wrong kind, of the wrong types."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import CrossroadsError, InputError
from crossroads.prompts.formats import FORMATS, read_long
from crossroads.prompts.readers import read_outcomes, write_outcomes

GOOD = 'prompt_id,prompt,model,score,cost\n1,"one, ""1""",a,1,0.1\n1,"one, ""1""",b,0,0.2\n'


@pytest.fixture(scope="module")
def good_bytes() -> dict[str, bytes]:
    """A small table in every format."""
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first.csv"
        first.write_text(GOOD, "utf-8")
        found = {}
        for suffix in FORMATS:
            path = Path(folder) / f"t{suffix}"
            write_outcomes(read_outcomes(first), path)
            found[suffix] = path.read_bytes()
        return found


def complaint(path: Path) -> str:
    with pytest.raises(CrossroadsError) as caught:
        read_outcomes(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@settings(max_examples=150)
@given(data=st.data(), suffix=st.sampled_from(FORMATS))
def test_any_damage_gives_a_table_or_one_line(
    data: st.DataObject, suffix: str, good_bytes: dict[str, bytes]
) -> None:
    content = bytearray(good_bytes[suffix])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 40)))
        content[start:end] = data.draw(st.binary(max_size=6))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t{suffix}"
        path.write_bytes(bytes(content))
        try:
            table = read_outcomes(path)
        except CrossroadsError as error:
            assert "\n" not in str(error)
        else:
            known = table.score[~np.isnan(table.score)]
            assert len(known) > 0
            assert ((known >= 0) & (known <= 1)).all()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_truncated_file_is_refused(
    suffix: str, good_bytes: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(good_bytes[suffix][:-8])
    complaint(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_empty_file_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(gzip.compress(b"") if suffix.endswith(".gz") else b"")
    complaint(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_of_another_kind_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    complaint(path)


def test_a_table_in_the_wrong_suffix_is_refused(
    good_bytes: dict[str, bytes], tmp_path: Path
) -> None:
    for suffix, other in ((".parquet", ".csv"), (".csv", ".parquet"), (".csv", ".jsonl")):
        path = tmp_path / f"t{other}"
        path.write_bytes(good_bytes[suffix])
        complaint(path)


def test_an_unknown_suffix_names_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "t.xlsx"
    path.write_text("x", "utf-8")
    assert "expected one of .parquet, .csv" in complaint(path)


def test_text_that_is_not_utf8_names_its_line(tmp_path: Path) -> None:
    for suffix, content in (
        (".csv", b"prompt_id,prompt,model,score\n1,one,a,1\n2,caf\xe9,a,1\n"),
        (".jsonl", b'{"prompt_id":1,"model":"a","score":1}\n\n{"prompt_id":"\xe9"}\n'),
    ):
        path = tmp_path / f"t{suffix}"
        path.write_bytes(content)
        message = complaint(path)
        assert "line 3: not UTF-8 text" in message
        assert "save the file as UTF-8" in message


def test_the_line_of_a_bad_number_counts_header_quoted_lines_and_blank_lines(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.csv"
    rows = '1,"two\nlines ""quoted""\n\n",a,1\n\n2,x,a,0\n3,x,a,high\n'
    path.write_text(f"prompt_id,prompt,model,score\n{rows}", "utf-8")
    assert "line 8, column 'score': expected a number, got 'high'" in complaint(path)


def test_a_row_with_too_many_cells_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("prompt_id,model,score\n1,a,1\n2,a,1,9\n", "utf-8")
    message = complaint(path)
    assert "Row #3" in message
    assert "Expected 3 columns, got 4" in message


def test_a_repeated_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("prompt_id,model,score,score\n1,a,1,0\n", "utf-8")
    assert "column 'score' stands there twice" in complaint(path)


@pytest.mark.parametrize("missing", ["prompt_id", "model", "score"])
def test_a_missing_column_is_named_with_what_was_found(missing: str, tmp_path: Path) -> None:
    left = [c for c in ("prompt_id", "model", "score") if c != missing]
    path = tmp_path / "t.csv"
    path.write_text(f"{','.join(left)}\n1,a\n", "utf-8")
    message = complaint(path)
    assert f"no column {missing!r}" in message
    assert repr(left[0]) in message


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt_id": 1, "model": "a"}', "required field 'score'"),
        ('{"prompt_id": 1, "model": "a", "score": "0.5"}', "column 'score': Expected"),
        ('{"prompt_id": [1], "model": "a", "score": 1}', "column 'prompt_id': Expected"),
        ('{"prompt_id": 1, "model": "a", "score": NaN}', "JSON is malformed"),
        ("[1, 2]", "Expected 'object', got 'array'"),
        ('{"prompt_id": 1', "truncated"),
        ('{"prompt_id": "\\ud800", "model": "a", "score": 1}', "malformed"),
    ],
)
def test_a_wrong_json_line_is_named(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"prompt_id": 0, "model": "a", "score": 1}}\n\n{line}\n', "utf-8")
    message = complaint(path)
    assert "line 3" in message
    assert problem in message
    assert "write one JSON object per line" in message


def parquet(path: Path, **changes: pa.Array) -> Path:
    columns = {
        "prompt_id": pa.array(["1", "1", "2"]),
        "model": pa.array(["a", "b", "a"]),
        "score": pa.array([1.0, 0.5, 0.0]),
    }
    pq.write_table(pa.table({**columns, **changes}), path)
    return path


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"score": pa.array(["1", "0", "1"])},
            "column 'score': expected numbers, got the type string",
        ),
        (
            {"score": pa.array([[1.0], [0.5], []])},
            "column 'score': expected numbers, got the type list",
        ),
        (
            {"model": pa.array([0.5, 1.5, 2.5])},
            "column 'model': expected text, got the type double",
        ),
        ({"model": pa.array([b"a", b"b", b"\xff"])}, "column 'model': expected text"),
    ],
)
def test_wrong_parquet_types_name_the_column(
    changes: dict[str, pa.Array], problem: str, tmp_path: Path
) -> None:
    assert problem in complaint(parquet(tmp_path / "t.parquet", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_id": pa.array([1, 1, 2])},
        {"model": pa.array(["a", "b", "a"]).dictionary_encode()},
        {"model": pa.array(["a", "b", "a"], pa.large_string())},
        {"score": pa.array([1, 1, 0], pa.int8())},
        {"score": pa.array([True, False, True])},
        {"score": pa.array([1, 0.5, 0], pa.float16())},
        {"cost": pa.nulls(3)},
    ],
)
def test_other_parquet_types_of_the_same_meaning_are_read(
    changes: dict[str, pa.Array], tmp_path: Path
) -> None:
    table = read_outcomes(parquet(tmp_path / "t.parquet", **changes))
    assert table.models == ("a", "b")
    assert table.prompt_ids.tolist() == ["1", "2"]
    assert table.score[0, 0] == 1.0


def test_a_dictionary_with_repeats_and_nulls_inside_is_read_by_value(tmp_path: Path) -> None:
    values = pa.array(["b", "a", "a", "unused"])
    model = pa.DictionaryArray.from_arrays(pa.array([1, 0, 2]), values)
    table = read_outcomes(parquet(tmp_path / "t.parquet", model=model))
    assert table.models == ("a", "b")


def test_rows_are_named_by_number_where_there_are_no_lines(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", score=pa.array([1.0, 0.5, 2.0]))
    assert "row 3, column 'score': expected a number in [0, 1], got 2.0" in complaint(path)


def test_a_file_nobody_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.symlink_to(path)  # a loop: unreadable for root too
    with pytest.raises(InputError):
        read_outcomes(path)


def test_reading_the_long_form_alone_does_not_judge_values(tmp_path: Path) -> None:
    long = read_long(parquet(tmp_path / "t.parquet", score=pa.array([7.0, 0.5, 0.0])))
    assert long.columns.num_rows == 3
    assert long.place(0) == "row 1"
