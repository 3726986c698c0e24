from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.models.encoders import get_encoder
from crossroads.prompts.features import queries, table_features, training_set, with_features

from .toy import toy_table


def test_texts_are_encoded_where_the_table_carries_no_embeddings() -> None:
    table = toy_table()
    rows = table_features(table)
    assert table.texts is not None
    np.testing.assert_array_equal(rows, get_encoder("static").encode(table.texts.tolist()))


def test_the_tables_own_embeddings_come_first() -> None:
    own = np.ones((120, 2), dtype=np.float32)
    assert table_features(replace(toy_table(), embeddings={"static": own})) is own


def test_a_table_without_texts_names_the_encoder_it_carries() -> None:
    bare = replace(toy_table(), texts=None, embeddings={"static": np.ones((120, 2), np.float32)})
    with pytest.raises(InputError, match="choose the encoder 'static', or add a 'prompt' column"):
        table_features(bare, "minilm")
    with pytest.raises(InputError, match="with 'static'; add a 'prompt' column"):
        table_features(replace(bare, embeddings={}))


def test_a_table_can_carry_several_encoders() -> None:
    own = np.ones((120, 2), dtype=np.float32)
    both = with_features(replace(toy_table(), embeddings={"own": own}))
    assert set(both.embeddings) == {"own", "static"}
    assert table_features(both, "own") is own
    np.testing.assert_array_equal(both.embeddings["static"], table_features(toy_table()))


def test_an_unknown_encoder_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown encoder 'none'"):
        table_features(toy_table(), "none")


def test_a_prompt_without_text_has_a_zero_row() -> None:
    table = toy_table()
    assert table.texts is not None
    table.texts[3] = ""
    rows = table_features(table)
    assert not rows[3].any()
    assert rows[4].any()


def test_a_training_set_is_the_rows_asked_for() -> None:
    table = toy_table()
    features = table_features(table)
    rows = np.array([7, 2])
    data = training_set(table, rows, features)
    assert data.models == table.models
    np.testing.assert_array_equal(data.embeddings, features[rows])
    np.testing.assert_array_equal(data.scores, table.score[rows])
    assert data.domains is not None
    assert data.domains.tolist() == ["space", "cooking"]


def test_without_costs_the_training_costs_are_unknown() -> None:
    table = toy_table(costs=False)
    data = training_set(table, np.arange(5), table_features(table))
    assert np.isnan(data.costs).all()


def test_queries_hold_the_labels_only_with_hindsight() -> None:
    table = replace(toy_table(), chance=np.full(120, 0.25, dtype=np.float32))
    features = table_features(table)
    served = queries(table, np.arange(5), features)
    assert (served.truth, served.domains, served.chance) == (None, None, None)
    assert served.texts is not None
    judged = queries(table, np.arange(5), features, hindsight=True)
    np.testing.assert_array_equal(judged.truth, table.score[:5])
    assert judged.domains is not None
    assert judged.domains.tolist() == ["cooking"] * 5
    assert judged.chance is not None
    assert judged.chance.tolist() == [0.25] * 5
