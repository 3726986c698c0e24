from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crossroads.core.errors import InputError
from crossroads.datasets.routerarena import ArenaRow
from crossroads.prompts.routerarena.difficulty import CutOffs
from crossroads.prompts.routerarena.evaluation import live_set, open_replay, replay_set
from crossroads.prompts.routerarena.perturb import GENERATORS
from tests.prompts.routerarena.toy import POOL, SCORE, TEXTS, toy_replay, toy_rows, toy_table


def test_a_replay_tells_difficulty_by_its_own_models_and_keeps_the_cut_offs() -> None:
    cut = CutOffs(easy=0.9, hard=0.4)
    evaluation = replay_set(toy_table(), pool=POOL, cut_offs=cut)
    assert [row.difficulty for row in evaluation.rows] == [
        "easy", "medium", "medium", "medium", "medium", "hard",
    ]  # fmt: skip
    assert evaluation.cut_offs == cut


def test_labels_of_the_table_win() -> None:
    given = np.array(["hard"] * 6, dtype=object)
    assert {row.difficulty for row in replay_set(toy_table(difficulty=given)).rows} == {"hard"}


def test_rows_without_text_or_outcome_are_left_out_and_told() -> None:
    score = SCORE.copy()
    score[0, 0] = np.nan
    texts = np.array(["", *TEXTS[1:5], ""], dtype=object)
    evaluation = replay_set(toy_table(score=score, texts=texts))
    assert [row.global_index for row in evaluation.rows] == ["Toy_1", "Toy_2", "Toy_3", "Toy_4"]
    assert any("2 prompts have no text" in note for note in evaluation.notes)


def test_only_test_rows_of_a_split_table_are_judged() -> None:
    split = np.array(["train", "test"] * 3, dtype=object)
    evaluation = replay_set(toy_table(split=split))
    assert [row.global_index for row in evaluation.rows] == ["Toy_1", "Toy_3", "Toy_5"]
    assert any("3 of 6 prompts marked test" in note for note in evaluation.notes)


def test_a_table_without_costs_or_rows_is_refused() -> None:
    with pytest.raises(InputError, match="no costs"):
        replay_set(toy_table(cost=None))
    with pytest.raises(InputError, match="counts costs in GB, the arena score is defined in USD"):
        replay_set(toy_table(cost_unit="GB"))
    with pytest.raises(InputError, match="no prompt to judge on"):
        replay_set(toy_table(texts=None))


def test_the_fingerprint_changes_with_texts_prices_and_outcomes() -> None:
    one = toy_replay()
    assert one.fingerprint == toy_replay().fingerprint
    other_score = 1 - SCORE
    assert one.fingerprint != replay_set(toy_table(score=other_score), pool=POOL).fingerprint
    dearer = POOL.model_copy(
        update={"models": tuple(c.model_copy(update={"price_in": 9.0}) for c in POOL)}
    )
    assert one.fingerprint != replay_set(toy_table(), pool=dearer).fingerprint


def test_the_fingerprint_changes_with_a_rewording() -> None:
    rows = toy_rows()
    one, other = (
        live_set(rows, POOL, name="live", reworded=[replace(rows[2], question=text)])
        for text in ("Put otherwise", "Put in yet another way")
    )
    assert (
        len({one.fingerprint, other.fingerprint, live_set(rows, POOL, name="x").fingerprint}) == 3
    )


def test_every_kind_rewords_the_same_rows() -> None:
    evaluation = toy_replay()
    assert len(evaluation.reworded) == 6 * len(GENERATORS)
    assert evaluation.reworded == toy_replay().reworded
    assert len(open_replay("local").reworded) == 420


def test_live_rows_get_their_prompt_and_published_rewordings() -> None:
    rows = toy_rows()
    other = [replace(rows[2], question="Put otherwise"), ArenaRow(global_index="X_1", source="X")]
    evaluation = live_set(rows, POOL, name="live", reworded=other)
    assert all("Options:" in row.prompt for row in evaluation.rows)
    assert [(pair.global_index, pair.kind) for pair in evaluation.reworded] == [
        ("Toy_2", "published")
    ]
    with pytest.raises(InputError, match="robustness split"):
        live_set(rows, POOL, name="live", reworded=other[1:])


def test_rows_with_hidden_answers_cannot_be_judged_live() -> None:
    rows = [replace(row, answers=()) for row in toy_rows()]
    with pytest.raises(InputError, match="answers of 6 rows are hidden"):
        live_set(rows, POOL, name="full")
