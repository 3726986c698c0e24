"""A table read in batches is the table read at once, and takes up no memory it need not."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from crossroads.cli import main
from crossroads.core.errors import InputError, UsageError
from crossroads.prompts import stage_writer, staging
from crossroads.prompts.pool import ModelCard, Pool
from crossroads.prompts.readers import read_outcomes
from crossroads.prompts.staging import StagedTable, open_stage, should_stream, stage_outcomes
from crossroads.prompts.tasks import prompt_task

MODELS = ("small", "large")
WORDS = ("apple", "river", "stone", "cloud", "ember", "frost", "maple", "ocean", "tiger")


def rows(n: int = 40) -> dict[str, list[object]]:
    rng = np.random.default_rng(0)
    columns: dict[str, list[object]] = {
        name: []
        for name in ("prompt_id", "prompt", "model", "score", "cost", "domain", "input_tokens")
    }
    for i in range(n):
        text = f"{' '.join(rng.choice(WORDS, 5))} {i}"
        for k, model in enumerate(MODELS):
            columns["prompt_id"].append(f"p\n{i}")  # an identifier may hold anything
            columns["prompt"].append(text)
            columns["model"].append(model)
            columns["score"].append(None if i == 3 and k else float(rng.integers(2)))
            columns["cost"].append(0.001 * (1 + 9 * k))
            columns["domain"].append("law" if i % 2 else "art")
            columns["input_tokens"].append(100)
    return columns


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_writer, "BATCH", 7)  # prompts are cut in two by batches


def write(folder: Path, columns: dict[str, list[object]]) -> Path:
    path = folder / "table.parquet"
    parquet.write_table(pa.table(columns), path)
    return path


def test_it_equals_the_table_read_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, rows())
    staged, plain = stage_outcomes(path, tmp_path / "out"), read_outcomes(path)
    assert staged.models == plain.models
    for name in ("score", "cost", "prompt_hash", "prompt_ids", "domain"):
        np.testing.assert_array_equal(getattr(staged, name), getattr(plain, name), err_msg=name)
    assert staged.texts is None
    part = staged.take(np.array([5, 2]))
    assert plain.texts is not None and part.texts is not None
    assert part.texts.tolist() == plain.texts[[5, 2]].tolist()
    assert staged.select_models(["large"]).score.shape == (40, 1)


def test_rows_of_a_prompt_may_be_far_apart(tmp_path: Path) -> None:
    columns = rows()
    order = np.argsort([str(m) for m in columns["model"]], kind="stable")
    apart = {name: [values[i] for i in order] for name, values in columns.items()}
    staged = stage_outcomes(write(tmp_path, apart), tmp_path / "out")
    plain = read_outcomes(tmp_path / "table.parquet")
    np.testing.assert_array_equal(staged.score, plain.score)
    assert plain.texts is not None
    found = staged.take(np.arange(40)).texts
    assert found is not None
    assert found.tolist() == plain.texts.tolist()


def test_the_pools_prices_cost_the_rows(tmp_path: Path) -> None:
    columns = rows()
    del columns["cost"]
    pool = Pool(models=tuple(ModelCard(name=name, price_in=k) for k, name in enumerate(MODELS)))
    staged = stage_outcomes(write(tmp_path, columns), tmp_path / "out", pool=pool)
    plain = read_outcomes(tmp_path / "table.parquet", pool=pool)
    assert staged.cost is not None and plain.cost is not None
    np.testing.assert_allclose(staged.cost, plain.cost)


def test_an_arena_of_it_gives_the_figures_of_the_table_in_memory(tmp_path: Path) -> None:
    path = write(tmp_path, rows(200))
    staged = prompt_task(stage_outcomes(path, tmp_path / "out"))
    plain = prompt_task(read_outcomes(path))
    for router in ("best-single", "ridge", "knn"):
        first, second = (task.run(router, 0).metrics for task in (staged, plain))
        for name in ("quality", "aiq", "ece", "robustness"):
            assert first[name] == pytest.approx(second[name], abs=1e-6), (router, name)


def test_it_travels_to_other_processes_as_the_name_of_its_folder(tmp_path: Path) -> None:
    staged = stage_outcomes(write(tmp_path, rows(200)), tmp_path / "out", models=["large", "small"])
    packed = pickle.dumps(staged)
    assert len(packed) < 2000
    again = pickle.loads(packed)
    assert isinstance(again, StagedTable)
    assert again.models == ("large", "small")
    np.testing.assert_array_equal(again.score, staged.score)


def test_a_stage_is_used_again_until_the_file_changes(tmp_path: Path) -> None:
    path = write(tmp_path, rows())
    first = stage_outcomes(path, tmp_path / "out")
    assert stage_outcomes(path, tmp_path / "out").folder == first.folder
    write(tmp_path, rows(41))
    assert stage_outcomes(path, tmp_path / "out").folder != first.folder


def test_half_a_stage_is_written_anew(tmp_path: Path) -> None:
    path = write(tmp_path, rows())
    folder = stage_outcomes(path, tmp_path / "out").folder
    (folder / "stage.json").unlink()
    (folder / "score.npy").write_bytes(b"half")
    assert len(stage_outcomes(path, tmp_path / "out")) == 40


def test_two_runs_that_stage_the_same_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = write(tmp_path, rows())
    quicker: list[Path] = []

    def meanwhile(done: int, total: int) -> None:
        if not quicker:
            quicker.append(stage_outcomes(path, tmp_path / "out").folder)

    slower = stage_outcomes(path, tmp_path / "out", progress=meanwhile)
    assert slower.folder == quicker[0]
    np.testing.assert_array_equal(slower.score, read_outcomes(path).score)
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == [slower.folder.name]


def test_a_wrong_row_leaves_no_stage(tmp_path: Path) -> None:
    columns = rows()
    columns["score"][60] = 2.0
    with pytest.raises(InputError, match="row 61"):
        stage_outcomes(write(tmp_path, columns), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_stage_names_the_remedy(tmp_path: Path) -> None:
    folder = stage_outcomes(write(tmp_path, rows()), tmp_path / "out").folder
    (folder / "score.npy").write_bytes(b"half")
    with pytest.raises(InputError, match="delete the folder and run again"):
        open_stage(folder)


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("score", 30, 1.5, r"row 31, column 'score': expected a number in \[0, 1\], got 1.5"),
        ("cost", 8, -1.0, "row 9, column 'cost': expected a finite number >= 0, got -1.0"),
        ("model", 20, "", "row 21, column 'model': empty"),
        ("model", 21, "small", "row 22: its prompt and model stand already further up"),
    ],
)
def test_a_wrong_row_is_named(
    tmp_path: Path, column: str, row: int, value: object, message: str
) -> None:
    columns = rows()
    columns[column][row] = value
    with pytest.raises(InputError, match=message):
        stage_outcomes(write(tmp_path, columns), tmp_path / "out")


def test_what_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("prompt_id,model,score\n")
    with pytest.raises(InputError, match=r"write the table as \.parquet"):
        stage_outcomes(tmp_path / "t.csv", tmp_path / "out")
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        stage_outcomes(tmp_path / "t.parquet", tmp_path / "out")
    columns = rows()
    del columns["prompt"]
    with pytest.raises(InputError, match="no column 'prompt'"):
        stage_outcomes(write(tmp_path, columns), tmp_path / "out")
    with pytest.raises(UsageError, match="unknown model 'small'"):
        pool = Pool(models=(ModelCard(name="large"),))
        stage_outcomes(write(tmp_path, rows()), tmp_path / "out", pool=pool)


def test_only_long_parquet_files_are_streamed_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, rows())
    assert not should_stream(path)
    monkeypatch.setattr(staging, "STREAMED_ROWS", 79)
    assert should_stream(path)
    assert not should_stream(tmp_path / "absent.parquet")
    (tmp_path / "t.csv").write_text("x")
    assert not should_stream(tmp_path / "t.csv")


def test_the_command_streams_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, rows(200))
    options = ["--routers", "ridge", "--seeds", "1", "--jobs", "1", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["arena", "prompts", "--outcomes", str(path), "--stream", *options,
              "--out", str(tmp_path / "out")])  # fmt: skip
    assert ended.value.code == 0
    board = json.loads(capsys.readouterr().out)
    assert "read in batches" in board["description"]
    assert "at most 20,000 to learn from" in board["description"]
