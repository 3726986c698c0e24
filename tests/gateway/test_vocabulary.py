"""What the words of the APIs mean, whoever reads them."""

from __future__ import annotations

from typing import Any

import pytest

from crossroads.gateway.call import Dialect
from crossroads.gateway.contracts import Usage
from crossroads.gateway.vocabulary import FINISH_OF, STOP_OF, usage_of


@pytest.mark.parametrize(
    ("dialect", "given", "usage"),
    [
        ("chat", {"prompt_tokens": 3, "completion_tokens": 2}, Usage(3, 2)),
        ("embeddings", {"prompt_tokens": 3}, Usage(3, 0)),
        ("responses", {"input_tokens": 3, "output_tokens": 2}, Usage(3, 2)),
        ("messages", {"input_tokens": 3, "cache_read_input_tokens": 4}, Usage(7, 0)),
        ("messages", {"input_tokens": 3, "cache_read_input_tokens": None}, Usage(3, 0)),
    ],
)
def test_each_api_counts_in_its_own_words(
    dialect: Dialect, given: dict[str, Any], usage: Usage
) -> None:
    assert usage_of(dialect, given) == usage


@pytest.mark.parametrize(
    ("dialect", "given"),
    [
        *(("chat", None), ("chat", {}), ("chat", "x"), ("chat", {"prompt_tokens": None})),
        *(("chat", {"prompt_tokens": True}), ("chat", {"prompt_tokens": -1})),
        ("completions", {"prompt_tokens": 1, "completion_tokens": -1}),
        ("chat", {"prompt_tokens": 10**9 + 1}),
        ("responses", {"input_tokens": 1, "output_tokens": 10**30}),
        ("messages", {"input_tokens": -5, "cache_read_input_tokens": 9}),
        ("messages", {"input_tokens": 9, "cache_creation_input_tokens": -5}),
    ],
)
def test_counts_that_cannot_be_true_tell_nothing(dialect: Dialect, given: Any) -> None:
    assert usage_of(dialect, given) is None


def test_every_word_for_the_end_comes_back_as_one_that_means_the_same() -> None:
    for stop, finish in FINISH_OF.items():
        assert FINISH_OF[STOP_OF[finish]] == finish, stop
