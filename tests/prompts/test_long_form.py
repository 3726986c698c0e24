"""Tables that read well and say wrong things."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import CrossroadsError, InputError
from crossroads.prompts import long_form
from crossroads.prompts.readers import read_outcomes

HEADER = "prompt_id,prompt,model,score,cost,input_tokens,split,chance"
FINE = "1,one,a,1,0.1,10,train,0.25"


def complaint(folder: Path, *rows: str, header: str = HEADER) -> str:
    path = folder / "t.csv"
    path.write_text("\n".join([header, *rows]) + "\n", "utf-8")
    with pytest.raises(InputError) as caught:
        read_outcomes(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("2,two,a,1.5,,,test,", "line 3, column 'score': expected a number in [0, 1], got 1.5"),
        ("2,two,a,-0.1,,,test,", "line 3, column 'score': expected a number in [0, 1], got -0.1"),
        ("2,two,a,nan,,,test,", "line 3, column 'score': expected a number in [0, 1], got nan"),
        ("2,two,a,good,,,test,", "line 3, column 'score': expected a number, got 'good'"),
        ("2,two,a,1,-1,,test,", "line 3, column 'cost': expected a finite number >= 0, got -1.0"),
        ("2,two,a,1,inf,,test,", "line 3, column 'cost': expected a finite number >= 0, got inf"),
        ("2,two,a,1,nan,,test,", "line 3, column 'cost': expected a finite number >= 0, got nan"),
        ("2,two,a,1,,-3,test,", "line 3, column 'input_tokens': expected a finite number >= 0"),
        ("2,two,a,1,,,test,1.5", "line 3, column 'chance': expected a number in [0, 1]"),
        (",two,a,1,,,test,", "line 3, column 'prompt_id': empty; every row needs one"),
        ("2,two,,1,,,test,", "line 3, column 'model': empty; every row needs one"),
        ("2,two, ,1,,,test,", "line 3, column 'model': empty; every row needs one"),
        ("1,one,a,1,,,train,", "line 3: prompt '1' and model 'a' stand already in line 2"),
        ("1,uno,b,1,,,train,", "line 3, column 'prompt': prompt '1' has 'uno' here and another"),
        ("1,one,b,1,,,test,", "line 3, column 'split': prompt '1' has 'test' here and another"),
        ("1,one,b,1,,,train,0.5", "line 3, column 'chance': prompt '1' has 0.5 here"),
        ("2,two,a,1,,,dev,", "line 3, column 'split': expected 'train' or 'test', got 'dev'"),
        ("2,two,a,1,,,,", "line 3, column 'split': expected 'train' or 'test', got None"),
    ],
)
def test_a_wrong_row_is_named_with_place_value_and_remedy(
    row: str, problem: str, tmp_path: Path
) -> None:
    message = complaint(tmp_path, FINE, row)
    assert problem in message
    assert ";" in message


def test_a_header_alone_is_refused(tmp_path: Path) -> None:
    assert "no rows" in complaint(tmp_path)


def test_a_table_without_any_score_is_refused(tmp_path: Path) -> None:
    message = complaint(tmp_path, "1,a,", "2,a,", header="prompt_id,model,score")
    assert "column 'score': empty in every row" in message


def test_the_first_of_several_problems_is_reported(tmp_path: Path) -> None:
    message = complaint(tmp_path, FINE, "2,two,a,7,,,test,", "3,three,a,8,,,test,")
    assert "line 3" in message


def test_a_column_of_texts_where_models_belong_is_refused_before_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_form, "MOST_CELLS", 8)
    rows = [f"{n},answer {n},1" for n in range(3)]
    message = complaint(tmp_path, *rows, header="prompt_id,model,score")
    assert "3 prompts x 3 models are too many cells" in message


def test_costs_of_two_units_are_refused(tmp_path: Path) -> None:
    rows = ["1,a,1,0.1,EUR", "2,a,1,0.1,USD"]
    message = complaint(tmp_path, *rows, header="prompt_id,model,score,cost,cost_unit")
    assert "line 3, column 'cost_unit': expected 'EUR' as in the rows before" in message


CELLS = {
    "prompt_id": st.sampled_from(["1", "2", "3", "", " "]),
    "prompt": st.sampled_from(["one", "two", "", "a,b", 'x"y', "l\nm"]),
    "model": st.sampled_from(["a", "b", "", "NA"]),
    "score": st.sampled_from(["1", "0", "0.5", "", "-1", "2", "nan", "x", "1e400", " 1"]),
    "cost": st.sampled_from(["", "0.1", "-1", "inf", "nan", "cheap"]),
    "cost_unit": st.sampled_from(["USD", "EUR", ""]),
    "output_tokens": st.sampled_from(["", "3", "-3", "1e30", "1e40"]),
    "split": st.sampled_from(["train", "test", "", "dev"]),
    "chance": st.sampled_from(["", "0.25", "2"]),
    "response": st.text(max_size=3),
}


@given(
    st.lists(st.sampled_from(sorted(CELLS)), unique=True).flatmap(
        lambda names: st.tuples(
            st.just(names),
            st.lists(st.tuples(*(CELLS[name] for name in names)), max_size=6),
        )
    )
)
def test_every_table_is_valid_or_refused_on_one_line(
    content: tuple[list[str], list[tuple[str, ...]]],
) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([content[0], *content[1]])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes(text.getvalue().encode("utf-8", "replace"))
        try:
            table = read_outcomes(path)
        except CrossroadsError as error:
            assert "\n" not in str(error)
            return
    known = table.score[~np.isnan(table.score)]
    assert len(known) > 0
    assert ((known >= 0) & (known <= 1)).all()
    assert len(set(table.prompt_ids)) == len(table)
    for cells in (table.cost, table.output_tokens):
        assert cells is None or (np.isnan(cells) | ((cells >= 0) & np.isfinite(cells))).all()


@given(st.permutations(range(6)))
def test_the_order_of_rows_changes_only_the_order_of_prompts_and_models(order: list[int]) -> None:
    scores = {"1": [0, 1], "2": [1, 0], "3": [0.5, 1]}
    rows = [
        f"{p},text {p},{m},{s}"
        for p, pair in scores.items()
        for m, s in zip("ab", pair, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text("\n".join(["prompt_id,prompt,model,score", *(rows[i] for i in order)]))
        table = read_outcomes(path).select_models(["a", "b"])
    assert table.texts is not None
    found = {p: s.tolist() for p, s in zip(table.prompt_ids, table.score, strict=True)}
    assert found == scores
    assert all(t == f"text {p}" for p, t in zip(table.prompt_ids, table.texts, strict=True))
