"""Reading and writing whole tables; wrong files are in test_formats.py and test_long_form.py."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.formats import FORMATS
from crossroads.prompts.outcomes import OutcomeTable, prompt_hash
from crossroads.prompts.pool import ModelCard, Pool
from crossroads.prompts.readers import read_outcomes, shipped_tables, write_outcomes

HEADER = "prompt_id,prompt,model,score"
ROWS = "1,one,a,1\n1,one,b,0\n2,two,a,0.5\n"
ARRAYS = ("score", "cost", "input_tokens", "output_tokens", "latency_s", "chance")
TEXTS = ("prompt_ids", "texts", "domain", "difficulty", "split")


def write(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def assert_same(read: OutcomeTable, written: OutcomeTable) -> None:
    assert read.models == written.models
    assert read.cost is None or read.cost_unit == written.cost_unit
    assert read.prompt_hash.tolist() == written.prompt_hash.tolist()
    for name in ARRAYS:
        one, other = getattr(read, name), getattr(written, name)
        assert (one is None) == (other is None), name
        if one is not None:
            np.testing.assert_array_equal(one, other, err_msg=name)
    for name in TEXTS:
        one, other = getattr(read, name), getattr(written, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.tolist() == other.tolist(), name


@st.composite
def tables(draw: st.DrawFn) -> OutcomeTable:
    """Tables with missing cells, strange names and texts, and any set of optional columns."""
    word = st.text(st.characters(exclude_categories=["C"]), min_size=1).filter(str.strip)
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    ids = draw(st.lists(word, min_size=1, max_size=5, unique=True))
    models = draw(st.lists(word, min_size=1, max_size=4, unique=True))
    shape = (len(ids), len(models))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    run = rng.random(shape) < 0.7
    run[0, 0] = True
    score = np.where(run, rng.random(shape), np.nan).astype(np.float32)
    texts = draw(st.none() | st.lists(text, min_size=shape[0], max_size=shape[0]))
    if texts is not None and not any(texts):
        texts = None

    def cells(scale: float) -> np.ndarray | None:
        if not draw(st.booleans()):
            return None
        return np.where(run, scale * rng.random(shape), np.nan)

    def single(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values.astype(np.float32)

    keys = ids if texts is None else [t or i for t, i in zip(texts, ids, strict=True)]
    return OutcomeTable(
        prompt_ids=np.array(ids, dtype=object),
        models=tuple(models),
        score=score,
        prompt_hash=np.array([prompt_hash(k) for k in keys], dtype=np.uint64),
        texts=None if texts is None else np.array(texts, dtype=object),
        cost=cells(1e-3),
        cost_unit=draw(st.sampled_from(["USD", "EUR"])),
        input_tokens=single(cells(100)),
        output_tokens=single(cells(100)),
        latency_s=single(cells(3)),
        split=np.array(draw(st.lists(st.sampled_from(["train", "test"]), min_size=shape[0],
                                     max_size=shape[0])), dtype=object),
        chance=rng.random(shape[0]).astype(np.float32),
    )  # fmt: skip


@given(tables(), st.sampled_from(FORMATS))
def test_what_is_written_reads_back_the_same(table: OutcomeTable, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t{suffix}"
        write_outcomes(table, path)
        assert_same(read_outcomes(path), table)
        assert [p.name for p in Path(folder).iterdir()] == [path.name]


def test_an_unanswered_cell_is_missing_not_zero(tmp_path: Path) -> None:
    table = read_outcomes(write(tmp_path, f"{HEADER}\n{ROWS}"))
    assert table.models == ("a", "b")
    assert np.isnan(table.score[1, 1])
    assert table.score[0].tolist() == [1.0, 0.0]
    assert table.texts is not None
    assert table.texts.tolist() == ["one", "two"]


def test_an_empty_score_says_the_model_was_not_run(tmp_path: Path) -> None:
    table = read_outcomes(write(tmp_path, f"{HEADER}\n{ROWS}2,two,b,\n"))
    assert np.isnan(table.score[1, 1])


def test_csv_with_a_byte_order_mark_and_windows_lines_reads(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f"{HEADER}\n{ROWS}".replace("\n", "\r\n").encode())
    assert read_outcomes(path).prompt_ids.tolist() == ["1", "2"]


def test_names_that_look_like_missing_values_are_names(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEADER}\nNA,null,nan,1\nNA,null,None,0\n")
    table = read_outcomes(path)
    assert table.models == ("nan", "None")
    assert table.prompt_ids.tolist() == ["NA"]


def test_json_lines_take_whole_numbers_as_ids_and_booleans_as_scores(tmp_path: Path) -> None:
    records = [
        {"prompt_id": 7, "prompt": "x", "model": "a", "score": True, "response": {"any": []}},
        {"prompt_id": 8, "prompt": "y", "model": "a", "score": 0, "domain": "late column"},
    ]
    lines = "\n\n".join(json.dumps(r) for r in records)
    table = read_outcomes(write(tmp_path, lines, "t.jsonl"))
    assert table.prompt_ids.tolist() == ["7", "8"]
    assert table.score[:, 0].tolist() == [1.0, 0.0]
    assert table.domain is not None
    assert table.domain.tolist() == ["", "late column"]


def test_prompts_without_text_are_hashed_by_their_id(tmp_path: Path) -> None:
    table = read_outcomes(write(tmp_path, "prompt_id,model,score\nq1,a,1\nq2,a,0\n"))
    assert table.texts is None
    assert table.prompt_hash.tolist() == [prompt_hash("q1"), prompt_hash("q2")]


def test_models_are_kept_in_the_order_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEADER}\n{ROWS}")
    assert read_outcomes(path, models=["b", "a"]).models == ("b", "a")
    with pytest.raises(UsageError, match=r"unknown model in .*t\.csv: 'c'"):
        read_outcomes(path, models=["c"])


POOL = Pool(name="mine", models=(ModelCard(name="a", price_in=2.0), ModelCard(name="b")))


def test_costs_come_from_the_cost_column_before_the_pool(tmp_path: Path) -> None:
    rows = "1,a,1,0.25,1000000\n1,b,1,,1000000\n"
    path = write(tmp_path, f"prompt_id,model,score,cost,input_tokens\n{rows}")
    table = read_outcomes(path, pool=POOL)
    assert table.cost is not None
    assert table.cost[0, 0] == 0.25
    assert np.isnan(table.cost[0, 1])


def test_costs_come_from_prices_and_tokens_where_no_cost_is_given(tmp_path: Path) -> None:
    path = write(tmp_path, "prompt_id,model,score,input_tokens\n1,a,1,1000000\n1,b,1,1000000\n")
    table = read_outcomes(path, pool=POOL)
    assert table.cost is not None
    assert table.cost[0].tolist() == [2.0, 0.0]


def test_without_prices_or_tokens_there_are_no_costs(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEADER}\n{ROWS}")
    assert not read_outcomes(path).has_costs
    assert not read_outcomes(path, pool=Pool.of(["a", "b"])).has_costs


def test_a_model_the_pool_lacks_names_its_line_unless_it_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEADER}\n{ROWS}2,two,ab,1\n")
    with pytest.raises(InputError, match=r"line 5, column 'model': unknown model 'ab'.*--models"):
        read_outcomes(path, pool=POOL)
    assert read_outcomes(path, pool=POOL, models=["a"]).models == ("a",)


def test_shipped_tables_read_by_name() -> None:
    for name in shipped_tables():
        table = read_outcomes(name)
        assert table.has_costs
        assert table.source
    assert read_outcomes("mmlu-pro:served", models=["mathstral-7B"]).models == ("mathstral-7B",)


def test_an_unknown_part_of_the_shipped_table_names_the_parts() -> None:
    with pytest.raises(UsageError, match="did you mean 'small'"):
        read_outcomes("mmlu-pro:smal")


def test_a_missing_file_names_what_could_be_given(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; give \.parquet.*mmlu-pro:small"):
        read_outcomes(tmp_path / "none.csv")


def test_an_unknown_folder_names_the_layouts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the folder of a known outcome table"):
        read_outcomes(tmp_path)


def test_a_failed_write_leaves_the_older_file_alone(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEADER}\n{ROWS}")
    table = read_outcomes(path)
    broken = table.take(np.arange(len(table)))
    object.__setattr__(broken, "texts", np.array([object(), object()], dtype=object))
    with pytest.raises(Exception, match="object"):
        write_outcomes(broken, path)
    assert path.read_text("utf-8") == f"{HEADER}\n{ROWS}"
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_writing_names_the_problem_on_one_line(tmp_path: Path) -> None:
    table = read_outcomes(write(tmp_path, f"{HEADER}\n{ROWS}"))
    with pytest.raises(UsageError, match=r"expected one of \.parquet"):
        write_outcomes(table, tmp_path / "t.xlsx")
    with pytest.raises(InputError, match=r"u\.csv: cannot be written: "):
        write_outcomes(table, tmp_path / "t.csv" / "u.csv")
