"""The real data sets reproduce the figures recorded with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.readers import read_outcomes

pytestmark = pytest.mark.slow
Finder = Callable[[str], Path]


def accuracy(table: OutcomeTable) -> dict[str, float]:
    """Mean score of each model over what it was run on."""
    means = np.nanmean(table.score, axis=0)
    return dict(zip(table.models, means.tolist(), strict=True))


def counts(table: OutcomeTable) -> dict[str, int]:
    """Number of prompts by (weak, strong) right or wrong."""
    pairs = ["".join("FT"[int(s)] for s in row) for row in table.score]
    return {pair: pairs.count(pair) for pair in ("TT", "FT", "FF", "TF")}


def test_mmlu_pro(shared_folder: Finder) -> None:
    table = read_outcomes(shared_folder("mmlu_pro_outcomes"))
    found = accuracy(table)
    assert table.score.shape == (12_032, 29)
    assert max(found, key=lambda m: found[m]) == "gemini-1.5-pro-002"
    assert min(found, key=lambda m: found[m]) == "Llama-2-7b-hf"
    assert found["gemini-1.5-pro-002"] == pytest.approx(0.703, abs=0.001)
    assert found["Llama-2-7b-hf"] == pytest.approx(0.184, abs=0.001)
    assert np.isfinite(table.score).all(axis=0).sum() == 26
    run = np.isfinite(table.score).sum(axis=0)
    by_name = dict(zip(table.models, run.tolist(), strict=True))
    assert by_name["DeepSeek-Coder-V2"] == 10_351
    assert by_name["gemini-1.5-flash-002"] == 12_012
    assert by_name["gemini-1.5-pro-002"] == 12_020
    oracle = np.nan_to_num(table.score).max(axis=1)
    assert (oracle == 0).sum() == 640
    assert oracle.mean() == pytest.approx(0.947, abs=0.001)


def test_the_embedded_table_is_the_data_set(shared_folder: Finder) -> None:
    full, embedded = read_outcomes(shared_folder("mmlu_pro_outcomes")), read_outcomes("mmlu-pro")
    assert full.models == embedded.models
    np.testing.assert_array_equal(full.score, embedded.score)
    for name in ("prompt_ids", "prompt_hash", "domain"):
        assert getattr(full, name).tolist() == getattr(embedded, name).tolist(), name
    assert full.cost is not None
    assert embedded.cost is not None
    np.testing.assert_allclose(embedded.cost, full.cost, rtol=0.04)


def test_routellm_cells(shared_folder: Finder) -> None:
    table = read_outcomes(shared_folder("routellm_mmlu_gsm8k"))
    assert table.domain is not None
    is_math = table.domain == "gsm8k"
    mmlu, gsm8k = table.take(~is_math), table.take(is_math)
    assert counts(mmlu) == {"TT": 8818, "FT": 2497, "FF": 1985, "TF": 742}
    assert counts(gsm8k) == {"TT": 747, "FT": 383, "TF": 95, "FF": 94}
    assert len(set(mmlu.domain)) == 57  # type: ignore[arg-type]
    assert accuracy(mmlu)["mixtral-8x7b-instruct"] == pytest.approx(0.681, abs=0.001)
    assert accuracy(mmlu)["gpt-4-1106-preview"] == pytest.approx(0.806, abs=0.001)
    assert accuracy(gsm8k)["mixtral-8x7b-instruct"] == pytest.approx(0.638, abs=0.001)
    assert accuracy(gsm8k)["gpt-4-1106-preview"] == pytest.approx(0.857, abs=0.001)


def test_routerarena_means_and_costs(shared_folder: Finder) -> None:
    table = read_outcomes(shared_folder("routerarena"))
    assert len(table) == 809
    found = accuracy(table)
    assert found["claude-3-haiku-20240307"] == pytest.approx(0.5234, abs=1e-4)
    assert found["gemini-2.0-flash-001"] == pytest.approx(0.6901, abs=1e-4)
    assert table.score.max(axis=1).mean() == pytest.approx(0.7408, abs=1e-4)
    assert table.cost is not None
    assert (1000 * table.cost.mean(axis=0)).tolist() == pytest.approx([0.1760, 0.0475], abs=1e-4)
    assert table.texts is not None
    assert (table.texts != "").sum() == 423


def test_zeroeval_pool_answered_both_tasks(shared_folder: Finder) -> None:
    table = read_outcomes(shared_folder("zeroeval_outcomes"))
    assert table.score.shape == (2040, 13)
    assert np.isfinite(table.score).all()
    assert table.cost is not None
    assert (table.cost > 0).all()


def test_zeroeval_models_of_both_tasks(shared_folder: Finder) -> None:
    from crossroads.datasets import zeroeval

    rows = zeroeval.load(shared_folder("zeroeval_outcomes"))
    names, number = np.unique(rows["model"].to_numpy(zero_copy_only=False), return_counts=True)
    assert len(names) == 55
    both = names[number == 2040].tolist()
    assert len(both) == 29
    mean = rows.filter(
        np.isin(rows["model"].to_numpy(zero_copy_only=False), ["o1-mini-2024-09-12"])
    )
    assert np.mean(mean["score"].to_numpy()) == pytest.approx(0.934, abs=0.001)
