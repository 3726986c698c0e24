from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crossroads.adapters.collection import evaluation
from crossroads.adapters.collection.evaluation import Spent, draw_rows, evaluate, union
from crossroads.adapters.collection.rows import Row
from crossroads.adapters.collection.scoring import RowScore
from crossroads.core.errors import UsageError
from tests.adapters.collection.toys import task, tokenizer
from tests.adapters.toys import tiny_llama

MODEL = tiny_llama()


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Count the rows that are scored; a row's loss is its answer's place in the alphabet."""
    rows: list[Row] = []

    def score(model: Any, tokenizer: Any, given: list[Row], **_: Any) -> list[RowScore]:
        rows.extend(given)
        return [
            RowScore(
                nll=ord(row.answer.strip()) - 97.0, tokens=1,
                right_by_sum=row.answer < " n", right_by_mean=True,
            )
            for row in given
        ]  # fmt: skip

    monkeypatch.setattr(evaluation, "score_rows", score)
    return rows


def test_a_seeds_rows_are_those_of_every_arm() -> None:
    one = draw_rows(tokenizer(), task("t"), rows=5, seeds=(0, 1))
    assert one == draw_rows(tokenizer(), task("t"), rows=5, seeds=(0, 1))
    assert one[0] != one[1]
    assert draw_rows(tokenizer(), task("t"), rows=9, seeds=(1,))[1][:5] == one[1]


def test_a_task_with_fewer_rows_gives_all_of_them() -> None:
    found = draw_rows(tokenizer(), task("t"), rows=1000, seeds=(0,))
    assert set(found[0]) == set(task("t").rows["test"])


def test_figures_are_means_over_tokens_and_rows(scored: list[Row]) -> None:
    (found,) = evaluate(MODEL, tokenizer(), [task("t")], arm="a", rows=26, seeds=(0,))
    assert found.nll == pytest.approx(12.5)
    assert (found.accuracy, found.accuracy_by_mean) == (0.5, 1.0)
    assert (found.rows, found.tokens) == (26, 26)


def test_rows_that_seeds_share_are_scored_once(scored: list[Row]) -> None:
    evaluate(MODEL, tokenizer(), [task("t")], arm="a", rows=20, seeds=(0, 1, 2))
    drawn = draw_rows(tokenizer(), task("t"), rows=20, seeds=(0, 1, 2))
    assert sorted(map(repr, scored)) == sorted(map(repr, union(drawn)))


def test_kept_scores_are_not_made_again_and_more_rows_add_theirs(
    scored: list[Row], tmp_path: Path
) -> None:
    def run(rows: int, arm: str = "a") -> Any:
        return evaluate(
            MODEL, tokenizer(), [task("t")], arm=arm, rows=rows, seeds=(0,), cache=tmp_path
        )

    first = run(8)
    assert len(scored) == 8
    assert run(8) == first and len(scored) == 8
    run(12)
    assert len(scored) == 12
    run(8, arm="another")
    assert len(scored) == 20


def test_a_stopped_evaluation_goes_on(
    scored: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_CHUNK", 4)

    def stop(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    given = {"arm": "a", "rows": 20, "seeds": (0,), "cache": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        evaluate(MODEL, tokenizer(), [task("t")], progress=stop, **given)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + b'{"row": "cut o')  # killed within a line
    seen: list[int] = []
    found = evaluate(
        MODEL, tokenizer(), [task("t")], progress=lambda done, _: seen.append(done), **given
    )
    assert len(scored) == 20 and seen[-1] == 20
    (whole,) = evaluate(MODEL, tokenizer(), [task("t")], arm="a", rows=20, seeds=(0,))
    assert found == [whole]


def test_only_the_scoring_of_rows_that_were_not_kept_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: now[0])
    is_first = [True]

    def score(model: Any, tokenizer: Any, given: list[Row], **_: Any) -> list[RowScore]:
        now[0] += len(given) + 1000.0 * is_first[0]  # as where weights are merged at first
        is_first[0] = False
        return [RowScore(nll=1.0, tokens=1) for _ in given]

    def kept(*_: Any) -> None:
        now[0] += 100.0

    monkeypatch.setattr(evaluation, "score_rows", score)
    monkeypatch.setattr(evaluation, "append_line", kept)
    monkeypatch.setattr(evaluation, "_CHUNK", 4)
    spent = Spent()
    given = {"arm": "a", "seeds": (0,), "cache": tmp_path, "spent": spent}
    evaluate(MODEL, tokenizer(), [task("t"), task("u")], rows=6, **given)
    assert (spent.scoring, spent.rows) == (12.0, 12)


def test_rows_that_were_kept_take_no_time(scored: list[Row], tmp_path: Path) -> None:
    given = {"arm": "a", "rows": 8, "seeds": (0,), "cache": tmp_path}
    evaluate(MODEL, tokenizer(), [task("t")], **given)
    spent = Spent()
    evaluate(MODEL, tokenizer(), [task("t")], spent=spent, **given)
    assert (spent.scoring, spent.rows, len(scored)) == (0.0, 0, 8)


def test_no_rows_are_refused() -> None:
    with pytest.raises(UsageError, match="expected rows and seeds, got 0 rows"):
        evaluate(MODEL, tokenizer(), [task("t")], arm="a", rows=0)
