from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError
from crossroads.gateway.contracts import Usage
from crossroads.gateway.governance import PriceBook, price_of
from crossroads.prompts.pool import ModelCard

CARD = ModelCard(name="m", price_in=2.0, price_out=8.0, price_per_call=0.01, max_output=1_000)
counts = st.integers(0, 10**7)


@given(counts, counts)
def test_the_book_agrees_with_the_card(sent: int, received: int) -> None:
    usage = Usage(sent, received)
    assert PriceBook([CARD]).cost("m", usage) == pytest.approx(price_of(CARD, usage))


@given(counts, counts, counts)
def test_the_upper_estimate_is_no_less_than_any_answer_within_the_bound(
    sent: int, bound: int, received: int
) -> None:
    book = PriceBook([CARD])
    usage = Usage(sent, min(bound, received))
    assert book.upper("m", sent, bound) >= book.cost("m", usage)


def test_without_a_bound_the_models_own_counts_and_then_the_default() -> None:
    book = PriceBook([CARD, ModelCard(name="free"), ModelCard(name="open", price_out=1.0)])
    assert book.upper("m", 0) == pytest.approx(0.01 + 8.0 * 1_000 / 1e6)
    assert book.upper("open", 0) == pytest.approx(4096 / 1e6)
    assert book.upper("free", 100) == 0.0
    assert book.cost("unknown", Usage(5, 5)) == book.upper("unknown", 5) == 0.0


def test_the_file_goes_before_the_pool_and_may_be_edited_while_serving(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("m: {in: 4, out: 0}\nother: {per_call: 0.5}\n")
    book = PriceBook(iter([CARD]), path)
    million = Usage(1_000_000, 1_000_000)
    assert book.cost("m", million) == pytest.approx(4.0)
    assert book.cost("other", million) == 0.5
    assert book.models == {"m", "other"}
    assert book.refresh() is False
    path.write_text("m: {in: 40}\n")
    assert book.refresh() is True
    assert book.cost("m", million) == pytest.approx(40.0)
    assert book.cost("other", million) == 0.0


def test_a_file_that_became_wrong_leaves_the_prices_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("m: {in: 4}\n")
    book = PriceBook([CARD], path)
    path.write_text("m: {in: -4, cheap: true}\n")
    assert book.refresh() is False
    assert str(path) in book.problem
    assert book.cost("m", Usage(1_000_000)) == pytest.approx(4.0)
    path.write_text("m: {in: 5}\n")
    assert book.refresh() is True
    assert book.problem == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("m: [", "not valid YAML: "),
        ("m: {in: -1}", "m.in: expected at least 0"),
        ("m: {inn: 1}", "m: unknown field 'inn'; did you mean 'in'? Known: in, out, per_call"),
        ("- m", "expected fields and values, got a list"),
        ("m: {in: .nan}", "m.in: expected a finite number"),
        ("m: 3", "m: expected fields and values, got a number"),
    ],
)
def test_a_wrong_file_is_refused_at_the_start(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        PriceBook([], path)
    assert str(caught.value).startswith(f"prices {path}: {said}")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        PriceBook([], tmp_path / "none.yaml")
