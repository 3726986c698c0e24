from __future__ import annotations

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.composition.sizes import (
    model_sizes,
    parse_size,
    parse_sizes,
    size_in_name,
)
from crossroads.prompts.pool import ModelCard, Pool


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("7B", 7e9),
        ("3.8b", 3.8e9),
        ("135M", 135e6),
        ("1.5e9", 1.5e9),
        (" 2T ", 2e12),
        ("500K", 5e5),
    ],
)
def test_a_size_is_read(text: str, size: float) -> None:
    assert parse_size(text, where="budget") == size


@pytest.mark.parametrize("text", ["", "B", "7Q", "-7B", "0", "nan", "inf", "1e999", "7B 8B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="budget: expected a number of parameters like 7B"):
        parse_size(text, where="budget")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Llama-2-7b-hf", 7e9),
        ("Meta-Llama-3_1-70B-Instruct", 70e9),
        ("mathstral-7B", 7e9),
        ("Mixtral-8x7B-v0.1", 56e9),
        ("Qwen1.5-110B", 110e9),
        ("smollm2-135M", 135e6),
        ("qwen2.5:0.5b", 0.5e9),
        ("Phi-3-mini-4k-instruct", None),
        ("gpt-4-1106-preview", None),
        ("model-8bit", None),
        ("merge-of-7B-and-13B", None),
    ],
)
def test_a_size_in_a_name_is_read_where_it_is_plain(name: str, size: float | None) -> None:
    assert size_in_name(name) == size


def test_a_given_size_goes_before_the_card_and_the_card_before_the_name() -> None:
    models = ("a-7B", "b-7B", "c-7B")
    pool = Pool(
        models=(ModelCard(name="a-7B", parameters=1e9), ModelCard(name="b-7B", parameters=2e9))
    )
    assert model_sizes(models, given={"a-7B": 5e8}, pool=pool).tolist() == [5e8, 2e9, 7e9]


def test_models_without_a_size_are_named_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"no size known of gpt-4, gemini; give it as sizes="):
        model_sizes(("gpt-4", "a-7B", "gemini"))


def test_a_size_for_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown model 'lama'; did you mean 'lama2'"):
        model_sizes(("lama2",), given={"lama": 1.0})


def test_assignments_keep_colons_and_equals_of_names() -> None:
    assert parse_sizes(["qwen:7b=7B", "a=b=1M"], where="sizes") == {"qwen:7b": 7e9, "a=b": 1e6}


@pytest.mark.parametrize("text", ["small", "=7B", "small="])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"sizes.*expected"):
        parse_sizes([text], where="sizes")
