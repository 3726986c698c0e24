from __future__ import annotations

import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UnavailableError, UsageError
from crossroads.datasets.paths import VARIABLE, data_folder
from crossroads.models.encoders import get_encoder
from crossroads.prompts import embedded
from crossroads.prompts.embedded import (
    load_embedded,
    pack_lengths,
    pack_unit_rows,
    unpack_lengths,
    unpack_unit_rows,
)
from crossroads.prompts.pool import Pool, read_pool

FILE = Path(embedded.__file__).parent / "data" / embedded.FILE
SCRIPT = Path(__file__).parents[2] / "scripts" / "build_embedded_table.py"


@pytest.mark.parametrize(
    ("subset", "models", "best", "best_quality", "oracle"),
    [
        ("all", 29, "gemini-1.5-pro-002", 0.7018, 0.9468),
        ("complete", 26, "Meta-Llama-3_1-70B-Instruct", 0.6297, 0.9235),
        ("small", 14, "Meta-Llama-3_1-8B-Instruct", 0.4435, 0.8211),
        ("served", 11, "gemini-1.5-pro-002", 0.7018, 0.9053),
    ],
)
def test_the_figures_of_the_table(
    subset: str, models: int, best: str, best_quality: float, oracle: float
) -> None:
    table = load_embedded(subset)
    assert table.score.shape == (12_032, models)
    score = np.nan_to_num(table.score)  # a question that was not answered counts as wrong
    assert table.models[int(score.mean(axis=0).argmax())] == best
    assert score.mean(axis=0).max() == pytest.approx(best_quality, abs=1e-4)
    assert score.max(axis=1).mean() == pytest.approx(oracle, abs=1e-4)


def test_the_table_says_that_it_is_replayed_and_estimated() -> None:
    source = load_embedded().source
    for word in ("MMLU-Pro", "replayed", "2024", "estimated", "declared"):
        assert word in source


def test_the_file_is_small_and_holds_no_text() -> None:
    assert FILE.stat().st_size <= 4 * 2**20
    with np.load(FILE, allow_pickle=False) as arrays:
        longest = {n: a.dtype.itemsize // 4 for n, a in arrays.items() if a.dtype.kind == "U"}
    assert set(longest) == {"models", "categories", "subjects"}
    assert max(longest.values()) < 50


def test_its_members_carry_no_date() -> None:
    with zipfile.ZipFile(FILE) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_it_carries_what_routers_need_and_no_texts() -> None:
    table = load_embedded("small")
    assert table.texts is None
    assert table.domain is not None
    assert len(set(table.domain)) == 14
    assert table.chance is not None
    assert (table.chance >= 0.1 - 1e-6).all()
    assert table.chance.max() <= 0.5
    rows = table.embeddings["static"]
    assert rows.shape == (12_032, get_encoder("static").dim)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert len(set(table.prompt_hash.tolist())) > 11_000


def test_a_model_that_was_not_run_has_neither_score_nor_cost() -> None:
    table = load_embedded()
    assert table.cost is not None
    missing = np.isnan(table.score)
    assert missing.sum() == (12_032 - 10_351) + (12_032 - 12_012) + (12_032 - 12_020)
    assert (np.isnan(table.cost) == missing).all()
    assert (table.cost[~missing] > 0).all()


def test_a_pool_gives_the_prices_and_chooses_the_models() -> None:
    dear = Pool.model_validate({"models": [{"name": "gemma-7b", "price_per_call": 3.0}]})
    table = load_embedded(pool=dear)
    assert table.models == ("gemma-7b",)
    assert table.cost is not None
    assert (table.cost == 3.0).all()


def test_a_subset_is_priced_by_the_pool_given() -> None:
    assert (
        load_embedded("small", pool=read_pool("mmlu-pro")).models == load_embedded("small").models
    )
    with pytest.raises(UsageError, match="unknown model"):
        load_embedded("small", pool=Pool.of(["gemma-7b"]))
    with pytest.raises(UsageError, match="unknown model 'none'"):
        load_embedded(pool=Pool.of(["none"]))


def test_an_unknown_subset_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'served'"):
        load_embedded("server")


def test_a_damaged_file_says_reinstall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded._load.cache_clear()
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(embedded.resources, "files", lambda package: tmp_path)
    for content in (None, b"", FILE.read_bytes()[:1000]):
        if content is not None:
            (tmp_path / "data" / embedded.FILE).write_bytes(content)
        with pytest.raises(InputError, match="reinstall crossroads"):
            embedded._load()


@given(st.lists(st.floats(0, 1e5) | st.just(np.nan), min_size=1))
def test_lengths_come_back_within_four_percent(lengths: list[float]) -> None:
    given_lengths = np.rint(np.array(lengths))
    back = unpack_lengths(pack_lengths(given_lengths))
    assert (np.isnan(back) == np.isnan(given_lengths)).all()
    np.testing.assert_allclose(back, given_lengths, rtol=0.04)


def test_packed_rows_keep_their_direction() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 256)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[3] = 0
    back = unpack_unit_rows(*pack_unit_rows(rows))
    cosine = (back * rows).sum(axis=1)
    assert np.delete(cosine, 3).min() > 0.9999
    assert not back[3].any()


def test_texts_are_attached_only_where_the_data_set_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(UnavailableError, match="mmlu_pro_outcomes"):
        load_embedded(with_text=True)


def real_folder() -> Path:
    try:
        return data_folder("mmlu_pro_outcomes")
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_attached_texts_have_the_embeddings_and_hashes_of_the_table() -> None:
    real_folder()
    table = load_embedded("served", with_text=True)
    assert table.texts is not None
    some = np.arange(0, len(table), 97)
    vectors = get_encoder("static").encode(table.texts[some].tolist())
    assert (vectors * table.embeddings["static"][some]).sum(axis=1).min() > 0.9999


@pytest.mark.slow
def test_building_again_gives_the_same_bytes(tmp_path: Path) -> None:
    real_folder()
    out = tmp_path / "again.npz"
    subprocess.run([sys.executable, str(SCRIPT), str(out)], check=True, capture_output=True)
    assert out.read_bytes() == FILE.read_bytes()


def test_the_script_refuses_a_table_that_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(SCRIPT))
    scope = script["main"].__globals__
    monkeypatch.setitem(scope, "build", lambda folder: {"a": np.zeros(script["LIMIT"], np.uint8)})
    monkeypatch.setitem(scope, "data_folder", lambda name: tmp_path)
    with pytest.raises(SystemExit, match="drop a column"):
        script["main"](tmp_path / "out.npz")
    assert not list(tmp_path.iterdir())
