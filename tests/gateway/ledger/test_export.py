from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.gateway.contracts import JUDGED, Record
from crossroads.gateway.ledger.export import read_calls, write_calls, write_outcome_table
from crossroads.gateway.ledger.feedback import Feedback
from crossroads.prompts.readers import read_outcomes
from tests.gateway.ledger.records import record


def calls() -> list[Record]:
    """Two prompts; the first was answered by both models, by ``small`` twice."""
    return [
        record("dec_1", prompt="one?", cost_usd=0.002),
        record("dec_2", prompt="one?", cost_usd=0.004),
        record("dec_3", prompt="one?", model="large", chosen="large"),
        record("dec_4", prompt="two, \u00fcber?"),
        record("dec_5", prompt="two, \u00fcber?", cache="exact", cost_usd=0.0),
        record("dec_6", prompt="three?", is_complete=False, status=503),
        record("dec_7"),  # no text
        record("dec_8", prompt="four?"),  # not judged
    ]


REWARDS = {"dec_1": 1.0, "dec_2": 0.5, "dec_3": 1.0, "dec_4": 0.0, "dec_7": 1.0}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_an_exported_table_is_read_back_as_outcomes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"outcomes{suffix}"
    found = write_outcome_table(calls(), REWARDS, path)
    assert (found.rows, found.prompts, found.models, found.calls) == (3, 2, 2, 4)
    assert found.left_out == {
        "answered by a cache": 1,
        "failed or cut short": 1,
        "without text or embedding": 1,
        "not judged": 1,
    }
    table = read_outcomes(path)
    assert table.models == ("small", "large")
    assert table.texts is not None
    assert list(table.texts) == ["one?", "two, \u00fcber?"]
    np.testing.assert_allclose(table.score, [[0.75, 1.0], [0.0, np.nan]])
    assert table.cost is not None
    np.testing.assert_allclose(table.cost[0], [0.003, 0.001])


def test_without_text_prompts_are_told_apart_by_their_embedding(tmp_path: Path) -> None:
    rows = [
        record("dec_1", features_hash="aa"),
        record("dec_2", features_hash="aa", model="large"),
        record("dec_3", features_hash="bb"),
    ]
    path = tmp_path / "o.parquet"
    write_outcome_table(rows, dict.fromkeys(("dec_1", "dec_2", "dec_3"), 1.0), path)
    table = read_outcomes(path)
    assert len(table) == 2
    assert not table.has_texts


def test_the_cost_of_several_attempts_is_no_models_cost(tmp_path: Path) -> None:
    tried = [("large", 503, "overloaded", 0.1), ("small", 200, "", 0.2)]
    rows = [record("dec_1", prompt="x", attempts=tried, cost_usd=9.0)]
    path = tmp_path / "o.jsonl"
    write_outcome_table(rows, {"dec_1": 1.0}, path)
    assert read_outcomes(path).cost is None


def test_unjudged_calls_can_be_kept_as_empty_scores(tmp_path: Path) -> None:
    path = tmp_path / "o.parquet"
    found = write_outcome_table(calls(), REWARDS, path, only_judged=False)
    assert found.rows == 4
    assert np.isnan(read_outcomes(path).score).sum() == 3


def test_nothing_to_learn_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no judged call"):
        write_outcome_table(calls(), {}, tmp_path / "o.parquet")
    with pytest.raises(UsageError, match="unknown kind"):
        write_outcome_table(calls(), REWARDS, tmp_path / "o.xlsx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_exported_calls_are_read_back_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"calls{suffix}"
    rows = [*calls(), record("dec_9", features=b"\x00\xff", verdict={"accepted": True})]
    feedback = [Feedback(decision_id="dec_1", score=0.5), Feedback(decision_id="dec_1", score=1.0)]
    assert write_calls(rows, feedback, path) == 9
    again, judged = read_calls(path)
    assert again == rows
    assert judged == feedback


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_text('{"prompt_id": 1}\n')
    with pytest.raises(InputError, match="not a file of calls"):
        read_calls(path)


def test_a_judge_of_a_cascade_is_no_second_try(tmp_path: Path) -> None:
    attempts = [("small", 200, "", 0.2), ("large", 200, JUDGED, 0.0)]
    rows = [record("dec_1", prompt="x", attempts=attempts, cost_usd=0.5)]
    path = tmp_path / "o.jsonl"
    write_outcome_table(rows, {"dec_1": 1.0}, path)
    table = read_outcomes(path)
    assert table.cost is not None
    np.testing.assert_allclose(table.cost, [[0.5]])
