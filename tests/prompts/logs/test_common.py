from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.logs import find_logs, read_logs
from crossroads.prompts.pool import ModelCard, Pool
from crossroads.prompts.readers import read_outcomes, write_outcomes
from tests.prompts.logs.written import (
    inspect_sample,
    lm_eval_sample,
    write_inspect_eval,
    write_inspect_json,
    write_lm_eval,
)


def test_a_folder_of_both_harnesses_is_one_table(tmp_path: Path) -> None:
    write_inspect_eval(tmp_path / "b.eval", [inspect_sample(1, "C")])
    write_inspect_json(tmp_path / "s.json", [inspect_sample(1, "I")], model="acme/small")
    samples = [lm_eval_sample(n, exact_match=1.0) for n in (1, 2)]
    write_lm_eval(tmp_path / "acme__small", samples)
    (tmp_path / "notes.json").write_text("{}", "utf-8")
    table = read_outcomes(tmp_path)
    assert table.models == ("acme/small", "openai/big")
    assert table.prompt_ids.tolist() == ["sums/1", "sums/2", "trivia/1"]
    np.testing.assert_array_equal(table.score, [[1, np.nan], [1, np.nan], [0, 1]])
    assert len(find_logs(tmp_path)) == 3
    write_outcomes(table, tmp_path / "t.parquet")
    np.testing.assert_array_equal(read_outcomes(tmp_path / "t.parquet").score, table.score)


def test_two_tasks_may_use_the_same_ids(tmp_path: Path) -> None:
    for task in ("sums", "products"):
        write_lm_eval(tmp_path, [lm_eval_sample(0, acc=1.0)], task=task)
    assert read_logs([tmp_path]).prompt_ids.tolist() == ["products/0", "sums/0"]


def test_the_same_id_must_be_the_same_question(tmp_path: Path) -> None:
    write_lm_eval(tmp_path / "a", [lm_eval_sample(0, acc=1.0)], model="a")
    other = {**lm_eval_sample(0, acc=1.0), "doc_hash": "another"}
    write_lm_eval(tmp_path / "b", [other], model="b")
    with pytest.raises(InputError, match="sample 'sums/0' asks something else than in"):
        read_logs([tmp_path])


def test_a_model_runs_a_task_once(tmp_path: Path) -> None:
    for name in ("one.json", "two.json"):
        write_inspect_json(tmp_path / name, [inspect_sample(1, "C")])
    with pytest.raises(InputError, match=r"'openai/big' ran task 'trivia' in .*one\.json already"):
        read_logs([tmp_path])


def test_models_take_their_names_and_prices_from_the_pool(tmp_path: Path) -> None:
    write_inspect_json(tmp_path / "log.json", [inspect_sample(1, "C")])
    cards = (ModelCard(name="big", upstream_model="openai/big", price_in=2.0, price_out=10.0),)
    table = read_logs([tmp_path], pool=Pool(models=cards, cost_unit="EUR"))
    assert table.models == ("big",)
    assert table.cost is not None
    assert table.cost[0, 0] == pytest.approx((15 * 2 + 4 * 10) / 1e6)
    assert table.cost_unit == "EUR"
    with pytest.raises(InputError, match="unknown model 'openai/big'"):
        read_logs([tmp_path], pool=Pool.of(["other"]))


def test_what_is_no_log_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        read_logs([tmp_path / "none"])
    with pytest.raises(InputError, match="no log of a known harness"):
        read_logs([tmp_path])


def test_logs_without_a_single_score_are_refused(tmp_path: Path) -> None:
    path = write_inspect_json(tmp_path / "l.json", [inspect_sample(1, "C", error={"message": "x"})])
    with pytest.raises(InputError, match="no sample has a score"):
        read_logs([path])
