from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.adapters.collection.rows import Row
from crossroads.adapters.collection.scoring import score_rows
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers.named import Named
from crossroads.adapters.routers.phatgoose import Phatgoose
from crossroads.core.errors import InputError
from tests.adapters.collection.toys import LETTERS, tokenizer
from tests.adapters.toys import bank_for, tiny_llama

MODEL = tiny_llama()
texts = st.lists(st.sampled_from(LETTERS), min_size=1, max_size=6).map(" ".join)


def _log(model: Any, prompt: str, answer: str) -> float:
    """Score one answer by itself, in the plain way."""
    first, then = (tokenizer().encode(text).ids for text in (prompt, answer))
    with torch.no_grad():
        log_TV = model(input_ids=torch.tensor([first + then])).logits[0].log_softmax(-1)
    return sum(float(log_TV[len(first) - 1 + n, token]) for n, token in enumerate(then))


def _expected(model: Any, row: Row) -> tuple[float, bool, bool]:
    sums = [_log(model, row.prompt, option) for option in row.options or ()]
    means = [
        total / len(tokenizer().encode(option).ids)
        for total, option in zip(sums, row.options or (), strict=True)
    ]
    return (
        -sums[row.right],
        sums.index(max(sums)) == row.right,
        means.index(max(means)) == row.right,
    )


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(texts, st.lists(texts, min_size=1, max_size=4, unique=True)),
        min_size=1,
        max_size=4,
    )
)
def test_options_in_one_pass_score_as_each_does_alone(
    drawn: Sequence[tuple[str, list[str]]],
) -> None:
    rows = [
        Row(prompt=prompt, answer=options[-1], options=tuple(options)) for prompt, options in drawn
    ]
    for row, score in zip(rows, score_rows(MODEL, tokenizer(), rows), strict=True):
        nll, by_sum, by_mean = _expected(MODEL, row)
        assert score.nll == pytest.approx(nll, abs=1e-4)
        assert (score.right_by_sum, score.right_by_mean) == (by_sum, by_mean)
        assert score.tokens == len(tokenizer().encode(row.answer).ids)


def test_routing_by_token_is_that_of_each_option_alone() -> None:
    model = tiny_llama()
    row = Row(prompt="a b c", answer="d e", options=("f", "d e", "g h i"))
    routed = RoutedModel(model, bank_for(model), Phatgoose(k=2))
    try:
        (score,) = score_rows(model, tokenizer(), [row])
        nll, by_sum, by_mean = _expected(model, row)
    finally:
        routed.unwrap()
    assert score.nll == pytest.approx(nll, abs=1e-4)
    assert (score.right_by_sum, score.right_by_mean) == (by_sum, by_mean)
    assert abs(nll - _expected(model, row)[0]) > 1e-3  # the experts did something


def test_facts_are_told_of_the_rows_of_each_batch_in_their_order() -> None:
    model = tiny_llama()
    rows = [Row(prompt="a " * n + "b", answer="c") for n in (200, 1, 300, 2, 250)]
    names = ["e0", None, "e1", "e2", "e3"]
    routed = RoutedModel(tiny := tiny_llama(max_position_embeddings=512), bank_for(model), Named())
    by_prompt = {row.prompt: name for row, name in zip(rows, names, strict=True)}

    def facts(batch: Sequence[Row]) -> dict[str, Any]:
        return {"experts": [by_prompt[row.prompt] for row in batch]}

    together = score_rows(tiny, tokenizer(), rows, facts=facts)
    for row, score in zip(rows, together, strict=True):
        (alone,) = score_rows(tiny, tokenizer(), [row], facts=facts)
        assert score.nll == pytest.approx(alone.nll, abs=1e-4)
    routed.unwrap()


def test_a_free_answer_has_no_accuracy() -> None:
    (score,) = score_rows(MODEL, tokenizer(), [Row(prompt="a b", answer=" c d")])
    assert score.nll == pytest.approx(-_log(MODEL, "a b", "c d"), abs=1e-4)
    assert score.right_by_sum is None and score.right_by_mean is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row(prompt="", answer=" a"), "has no prompt"),
        (Row(prompt="a", answer=" "), "an answer has no tokens"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(row: Row, message: str) -> None:
    with pytest.raises(InputError, match=message):
        score_rows(MODEL, tokenizer(), [row])


def test_progress_ends_with_all_rows() -> None:
    told: list[tuple[int, int]] = []
    rows = [Row(prompt="a", answer="b")] * 3
    score_rows(MODEL, tokenizer(), rows, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (3, 3)
