from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.checking import (
    checked_embeddings,
    checked_seed,
    checked_texts,
    unicode_text,
)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "1", None, True])
def test_a_seed_is_a_whole_number_of_63_bits(seed: object) -> None:
    with pytest.raises(UsageError, match="whole number"):
        checked_seed(seed)


def test_the_ends_of_the_seeds_are_seeds() -> None:
    assert [checked_seed(s) for s in (0, 2**63 - 1, np.int64(7))] == [0, 2**63 - 1, 7]


def test_texts_keep_pairs_and_lose_lone_surrogates() -> None:
    assert checked_texts(["plain", "\ud83d\ude00 \udc00"]) == ["plain", "\U0001f600 \ufffd"]
    assert unicode_text("plain") == "plain"


def test_a_text_alone_is_no_list_of_texts() -> None:
    with pytest.raises(InputError, match=r"use route\(\)"):
        checked_texts("one prompt")


def test_embeddings_of_any_width_pass_only_where_none_is_asked_for() -> None:
    rows = np.ones((2, 3))
    assert checked_embeddings(rows, encoder="static", dim=None).dtype == np.float32
    with pytest.raises(InputError, match="3 wide, encoder 'static' makes them 4 wide"):
        checked_embeddings(rows, encoder="static", dim=4)
    with pytest.raises(InputError, match="row 1 holds NaN"):
        checked_embeddings(np.array([[0.0], [np.inf]]), encoder="static", dim=1)
