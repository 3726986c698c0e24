from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from crossroads.adapters.collection.batches import batch_of_rows, fitting, training_batches
from crossroads.adapters.collection.rows import Row
from crossroads.core.errors import InputError
from tests.adapters.collection.toys import task, tokenizer

LONG = Row(prompt="a b c", answer=" d", options=(" d", " e f g"))


def test_rows_fit_by_their_longest_option() -> None:
    rows = {"train": (LONG,), "validation": (), "test": ()}
    assert fitting(tokenizer(), replace(task("t", length=6), rows=rows), "train") == [LONG]
    with pytest.raises(InputError, match="task t: no train row has at most 5 tokens"):
        fitting(tokenizer(), replace(task("t", length=5), rows=rows), "train")


def test_every_row_is_seen_once_an_epoch_and_seeds_decide_the_order() -> None:
    one = task("t", batch=13)
    batch_of = training_batches(tokenizer(), one, seed=0)
    seen = torch.cat([batch_of(step).ids_BT[:, 0] for step in (0, 1)])
    assert sorted(seen.tolist()) == list(range(3, 29))
    again = training_batches(tokenizer(), one, seed=0)
    other = training_batches(tokenizer(), one, seed=1)
    assert torch.equal(batch_of(1).ids_BT, again(1).ids_BT)
    assert not torch.equal(batch_of(1).ids_BT, other(1).ids_BT)


def test_batches_have_one_shape_and_score_answers_alone() -> None:
    batch = batch_of_rows(tokenizer(), [LONG, Row(prompt="a", answer="b c")], length=6)
    assert batch.ids_BT.shape == (2, 6)
    assert batch.answer_BT.long().tolist() == [[0, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0]]
