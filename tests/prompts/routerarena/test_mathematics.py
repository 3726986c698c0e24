from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import MissingExtraError
from crossroads.prompts.routerarena import mathematics
from crossroads.prompts.routerarena.mathematics import exact_number, normalise_result, same_result


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("42", "42.0"),
        ("x = 7", "7"),
        ("1,234", "1234"),
        ("$5$", "5"),
        ("62", "62%"),
        ("3 \\text{ cm}", "3"),
        ("\\dfrac{3}{4}", "0.75"),
        ("-\\frac{3}{4}", "-0.75"),
        ("\\text{Yardley}", "yardley"),
    ],
)
def test_different_spellings_are_one_result(found: str, wanted: str) -> None:
    assert same_result(found, wanted)
    assert same_result(wanted, found)


@pytest.mark.parametrize(
    ("found", "wanted"), [("41", "42"), ("", "42"), ("1/0", "1"), ("0.3", "1/3")]
)
def test_other_results_differ(found: str, wanted: str) -> None:
    assert not same_result(found, wanted)


@pytest.mark.slow
def test_formulas_are_equal_as_mathematics() -> None:
    pytest.importorskip("sympy")
    assert same_result("2(x+1)", "2x+2")
    assert same_result("\\sqrt{8}", "2\\sqrt{2}")
    assert not same_result("x+1", "x+2")
    assert not same_result("9^{9^{9^{9}}}", "1")  # and does not take for ever
    assert not same_result("__import__('os').system('true')", "0")


def test_without_sympy_only_text_and_numbers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise MissingExtraError("sympy", extra="scorers")

    monkeypatch.setattr(mathematics, "parse_scorer", missing)
    assert same_result("1/2", "0.5")
    assert not same_result("2(x+1)", "2x+2")


@given(st.fractions(max_denominator=1000))
def test_fractions_are_read_exactly(value: Fraction) -> None:
    assert exact_number(f"{value.numerator}/{value.denominator}") == value


@given(st.text(max_size=30))
def test_normalising_twice_is_normalising_once_for_plain_text(text: str) -> None:
    once = normalise_result("".join(c for c in text if c.isalnum()))
    assert normalise_result(once) == once
