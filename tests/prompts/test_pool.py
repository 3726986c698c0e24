from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import CrossroadsError, InputError, UsageError
from crossroads.prompts.embedded import SUBSETS, embedded_pool
from crossroads.prompts.pool import ModelCard, Pool, parse_pool, read_pool, shipped_pools


def test_every_shipped_pool_reads_and_says_what_its_prices_are() -> None:
    names = shipped_pools()
    assert {"mmlu-pro", "routellm", "routerarena", "zeroeval"} <= set(names)
    for name in names:
        pool = read_pool(name)
        assert pool.name == name
        assert pool.note


@pytest.mark.parametrize(("subset", "count"), list(zip(SUBSETS, (29, 14, 11, 26), strict=True)))
def test_the_parts_of_the_mmlu_pro_pool_have_their_sizes(subset: str, count: int) -> None:
    assert len(embedded_pool(subset)) == count


def test_declared_prices_of_the_mmlu_pro_pool() -> None:
    pool = read_pool("mmlu-pro")
    prices = {card.name: (card.price_in, card.price_out) for card in pool}
    assert prices["gemini-1.5-pro-002"] == (1.25, 5.0)
    assert prices["jamba-1.5-large"] == (2.0, 8.0)
    assert prices["Phi-3-mini-4k-instruct"] == (0.1, 0.1)
    assert prices["Meta-Llama-3_1-8B-Instruct"] == (0.18, 0.18)
    assert prices["Qwen1.5-110B"] == (1.8, 1.8)
    assert "declared" in pool.note


def test_models_up_to_eight_billion_parameters_are_small() -> None:
    small = set(read_pool("mmlu-pro:small").names)
    for card in read_pool("mmlu-pro"):
        is_small = card.parameters is not None and card.parameters <= 8.5e9
        assert (card.name in small) == is_small


def test_a_tag_no_model_carries_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'small'"):
        read_pool("mmlu-pro:smal")


def test_the_price_of_a_call() -> None:
    card = ModelCard(name="m", price_in=1.0, price_out=3.0, price_per_call=0.5)
    assert card.price(2_000_000, 1_000_000) == 5.5


@pytest.mark.parametrize("field", ["price_in", "price_out", "price_per_call"])
@pytest.mark.parametrize("value", ["-1", ".nan", ".inf", "free"])
def test_a_price_that_is_no_price_names_file_and_field(field: str, value: str) -> None:
    with pytest.raises(InputError, match=rf"p\.yaml: models\[0\]\.{field}: expected ") as caught:
        parse_pool(f"models: [{{name: m, {field}: {value}}}]", where="p.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "pool p.yaml: expected fields and values, got nothing"),
        ("models: []", "models: is empty; fill it in"),
        ("models: [{name: a}, {name: a}]", "model named twice: a"),
        ("models: [{name: a, contxt: 9}]", "models[0]: unknown field 'contxt'; did you mean"),
        ("models: [{name: a", "not valid YAML"),
        ("models: 2020-13-45", "not valid YAML"),
        ("models: [{name: ''}]", "models[0].name: is empty; fill it in"),
        ("models: [{name: 3}]", "models[0].name: expected a text, got a number"),
        ("models: [{name: a, context: big}]", "context: expected a whole number, got 'big'"),
        ("models: [{name: a, api: opnai}]", "expected 'openai', 'anthropic' or 'litellm', got"),
        ("models: [{name: a, timeouts: {all: 3}}]", "models[0].timeouts.all: expected 'connect'"),
        ('models: [{name: "a\\nb"}]', "models[0].name: expected a name without line breaks"),
        ('models: [{name: a, upstream_model: "b\\x7f"}]', "models[0].upstream_model: expected"),
        ("models: [{}]", "models[0].name: is missing; add it"),
        ("models: [{}, {}, {}]", "(and 2 more)"),
    ],
)
def test_a_wrong_pool_is_refused_on_one_line(text: str, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_pool(text, where="p.yaml")
    message = str(caught.value)
    assert problem in message
    assert "\n" not in message


def test_a_missing_file_names_the_shipped_pools(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; give a pool\.yaml or one of: .*mmlu-pro"):
        read_pool(tmp_path / "none.yaml")


def test_a_pool_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    path.write_bytes(b"models: [{name: \xff}]")
    with pytest.raises(InputError, match="not UTF-8"):
        read_pool(path)


@pytest.mark.parametrize(
    "text",
    [
        "models: [{name: a, api_key: [hunter2]}]",
        "models: [{name: a, headers: {tools: [hunter2]}}]",
        "models: [{name: a, endpoint: [hunter2]}]",
        "models: hunter2",
        "hunter2",
        "models: *hunter2",
        "models: [{name: a, proxy: {a: hunter2}}]",
    ],
)
def test_no_error_of_a_pool_shows_what_may_be_a_secret(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_pool(text, where="p.yaml")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_names_that_are_none_make_no_pool() -> None:
    with pytest.raises(InputError, match=r"pool mine: models\[1\]\.name: expected a name without"):
        Pool.of(["a", "b\x00"], name="mine")


@given(st.text(max_size=60))
def test_any_text_is_a_pool_or_an_error_on_one_line(text: str) -> None:
    try:
        pool = parse_pool(text, where="p.yaml")
    except CrossroadsError as error:
        assert "\n" not in str(error)
    else:
        assert len(pool) > 0


def test_a_subset_keeps_the_order_asked_for() -> None:
    pool = Pool.of(["a", "b", "c"])
    assert pool.subset(["c", "a"]).names == ("c", "a")
    with pytest.raises(UsageError, match="unknown model 'd'"):
        pool.subset(["d"])


def test_prices_are_dollars_unless_the_pool_says_what_else() -> None:
    units = {name: read_pool(name).cost_unit for name in shipped_pools()}
    assert units.pop("routellm") == "strong calls"
    assert set(units.values()) == {"USD"}
    assert read_pool("routellm:weak").cost_unit == "strong calls"
    with pytest.raises(InputError, match=r"pool p\.yaml: cost_unit: "):
        parse_pool("cost_unit: ''\nmodels: [{name: a}]", where="p.yaml")


def test_an_unpriced_pool_has_no_prices() -> None:
    assert not Pool.of(["a"]).has_prices
    assert read_pool("routellm").has_prices
