from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.outcomes import OutcomeTable, normalise_prompt, prompt_hash, unit_hash
from crossroads.prompts.pool import ModelCard, Pool


def table(n: int = 4, **changes: object) -> OutcomeTable:
    texts = np.array([f"question {i}" for i in range(n)], dtype=object)
    made = OutcomeTable(
        prompt_ids=np.array([f"p{i}" for i in range(n)], dtype=object),
        models=("a", "b"),
        score=np.tile(np.array([[0.0, 1.0]], dtype=np.float32), (n, 1)),
        prompt_hash=np.array([prompt_hash(t) for t in texts], dtype=np.uint64),
        texts=texts,
        embeddings={"static": np.eye(n, 8, dtype=np.float32)},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_take_keeps_every_column_of_the_rows_in_their_order() -> None:
    rows = table(5, domain=np.array(list("vwxyz"), dtype=object)).take(np.array([3, 1]))
    assert rows.prompt_ids.tolist() == ["p3", "p1"]
    assert rows.domain is not None
    assert rows.domain.tolist() == ["y", "w"]
    assert rows.embeddings["static"].argmax(axis=1).tolist() == [3, 1]


def test_a_boolean_mask_takes_the_same_rows_as_indices() -> None:
    mask = np.array([True, False, True, False])
    assert (
        table().take(mask).prompt_ids.tolist() == table().take(np.array([0, 2])).prompt_ids.tolist()
    )


def test_selecting_models_reorders_every_cell_column() -> None:
    chosen = table(cost=np.tile([[1.0, 2.0]], (4, 1))).select_models(["b", "a"])
    assert chosen.models == ("b", "a")
    assert chosen.score[0].tolist() == [1.0, 0.0]
    assert chosen.cost is not None
    assert chosen.cost[0].tolist() == [2.0, 1.0]


def test_selecting_an_unknown_model_names_the_nearest() -> None:
    long_names = table(models=("llama-small", "llama-large"))
    with pytest.raises(UsageError, match="did you mean 'llama-small'"):
        long_names.select_models(["llama-smal"])


def test_selecting_a_model_twice_is_refused() -> None:
    with pytest.raises(InputError, match="twice"):
        table().select_models(["a", "a"])


def test_complete_marks_prompts_that_every_model_answered() -> None:
    score = np.array([[0.5, np.nan], [0.5, 1.0]], dtype=np.float32)
    assert table(2, score=score).complete.tolist() == [False, True]


PRICED = Pool(
    models=(
        ModelCard(name="a", price_in=1.0, price_out=2.0, price_per_call=0.5),
        ModelCard(name="b"),
    )
)


def test_costs_are_tokens_times_prices_plus_the_price_of_the_call() -> None:
    tokens = np.full((4, 2), 1e6, dtype=np.float32)
    priced = table(input_tokens=tokens, output_tokens=tokens).with_prices(PRICED)
    assert priced.cost is not None
    assert priced.cost[0].tolist() == [3.5, 0.0]


def test_costs_count_what_the_pools_prices_count() -> None:
    calls = Pool(cost_unit="calls", models=PRICED.models)
    assert (table().cost_unit, table().with_prices(PRICED).cost_unit) == ("USD", "USD")
    priced = table().with_prices(calls)
    assert priced.cost_unit == "calls"
    assert priced.take(np.arange(2)).select_models(["b"]).cost_unit == "calls"


def test_a_cell_that_was_not_run_has_no_cost() -> None:
    score = np.array([[np.nan, 1.0]], dtype=np.float32)
    tokens = np.ones((1, 2), dtype=np.float32)
    priced = table(1, score=score, input_tokens=tokens, output_tokens=tokens).with_prices(PRICED)
    assert priced.cost is not None
    assert np.isnan(priced.cost[0, 0])


def test_unknown_token_counts_leave_the_cost_unknown_only_where_tokens_have_a_price() -> None:
    priced = table().with_prices(PRICED)
    assert priced.cost is not None
    assert np.isnan(priced.cost[:, 0]).all()
    assert (priced.cost[:, 1] == 0).all()


def test_pricing_a_model_the_pool_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown model 'b'"):
        table().with_prices(PRICED.subset(["a"]))


@given(st.text())
def test_spacing_and_case_do_not_change_the_hash(text: str) -> None:
    padded = "  " + text.replace(" ", " \n ") + "\t"
    assert prompt_hash(padded) == prompt_hash(text) == prompt_hash(normalise_prompt(text))


def test_the_hash_is_the_same_on_every_machine() -> None:
    assert prompt_hash("What is 2 + 2?") == 0xF33329AE8B6EA96D
    assert prompt_hash("") == 0xB4B2797457A0A6E4


def test_unit_hashes_are_even_and_differ_by_seed() -> None:
    hashes = np.arange(20_000, dtype=np.uint64)
    first, second = unit_hash(hashes, 0), unit_hash(hashes, 1)
    assert first.min() >= 0
    assert first.max() < 1
    assert abs(first.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


@given(st.integers(0, 50))
def test_prompts_with_the_same_text_are_never_parted(seed: int) -> None:
    texts = [f"question {i % 40}" for i in range(120)]
    hashes = np.array([prompt_hash(t) for t in texts], dtype=np.uint64)
    many = table(
        120,
        score=np.zeros((120, 2), dtype=np.float32),
        prompt_hash=hashes,
        embeddings={},
    )
    train, test = many.split_by_hash(seed)
    assert sorted([*train, *test]) == list(range(120))
    assert not {texts[i] for i in train} & {texts[i] for i in test}


def test_a_split_column_decides_whatever_the_seed() -> None:
    marked = table(split=np.array(["train", "test", "train", "test"], dtype=object))
    for seed in range(3):
        train, test = marked.split_by_hash(seed)
        assert (train.tolist(), test.tolist()) == ([0, 2], [1, 3])


def test_a_table_that_cannot_be_split_says_what_to_do() -> None:
    with pytest.raises(InputError, match="give more distinct prompts"):
        table(1).split_by_hash(0)
