from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import MissingExtraError, UsageError
from crossroads.prompts.scorers import parse_scorer, symbolic, worker
from crossroads.prompts.scorers.formula import parse_formula
from crossroads.prompts.scorers.latex import LONGEST, FormulaError, final_formula, tokens
from crossroads.prompts.scorers.symbolic import is_equal

sympy = pytest.importorskip("sympy")


@pytest.fixture(scope="module", autouse=True)
def _one_worker() -> Iterator[None]:
    yield
    worker.shared_worker().close()


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (r"So \boxed{\frac{1}{2}}.", "0.5"),
        (r"\boxed{50\%}", "1/2"),
        (r"The answer is $x = \frac{\sqrt{2}}{2}$.", r"1/\sqrt2"),
        (r"$x^2 + 2x + 1$", "(x+1)^2"),
        (r"\boxed{\sin^2 x + \cos^2 x}", "1"),
        (r"\boxed{1\frac{1}{2}}", "1.5"),
        (r"\boxed{-\frac12}", "-0.5"),
        (r"\boxed{\sqrt[3]{8}}", "2"),
        (r"\boxed{\log_2 8}", "3"),
        (r"\boxed{\binom{5}{2}}", "10"),
        (r"\boxed{e^{i\pi}}", "-1"),
        (r"\boxed{2\pi r}", "2*pi*r"),
        (r"\boxed{90^\circ}", "90"),
        (r"\boxed{5 \text{ cm}}", "5"),
        (r"\boxed{3^{2^{2}}}", "81"),
        ("1,234", "1234"),
        ("It costs:\n$5", r"\$5.00"),
        (r"\boxed{(1, 2]}", r"\left(1,\,2\right]"),
        (r"\boxed{(1,\frac{4}{2})}", "(1, 2)"),
        (r"\boxed{\{1, 2\}}", "2, 1"),
        (r"\boxed{(-\infty, 2) \cup (3, \infty)}", r"(3,\infty)\cup(-\infty,2)"),
        (r"\boxed{(1,2),(3,4)}", "(3,4), (1,2)"),
        (r"\boxed{\text{Paris}}", "paris"),
        (r"\boxed{10!}", "3628800"),
    ],
)
def test_equal_formulas_score_one(answer: str, reference: str) -> None:
    assert parse_scorer("symbolic")(answer, [reference]) == 1


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("3", "-3"),
        ("x", "y"),
        (r"\boxed{(1,2)}", "(1,2]"),
        (r"\boxed{(1,2)}", "(2,1)"),
        (r"\boxed{0.333}", "1/3"),
        (r"\boxed{50}", r"50\%"),
        ("1/0", "2"),
        ("1/0", "3/0"),
        ("", "1"),
        ("nothing to say", "1"),
        ("((((1", "1"),
        ("x^2", "x^3"),
    ],
)
def test_different_formulas_score_zero(answer: str, reference: str) -> None:
    assert parse_scorer("symbolic")(answer, [reference]) == 0


@pytest.mark.parametrize(
    "hostile",
    [
        "9^9^9^9",
        "2^{100000}",
        "(((x^99)^99)^99)^99",
        "99999!!!",
        r"\binom{10^9}{10^8}",
        "(" * LONGEST,
        "1" * 5000,
        "__import__('os').system('true')",
        "x.__class__.__mro__",
        "lambda: 0",
        "10^{-10^{10}}",
    ],
)
def test_a_hostile_formula_is_refused_before_anything_is_computed(hostile: str) -> None:
    try:
        found = parse_formula(hostile)
    except FormulaError:
        return
    assert found != 1
    assert is_equal(hostile, "1") is False


def test_a_comparison_that_takes_too_long_scores_zero_and_the_next_one_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    score = parse_scorer("symbolic")
    assert score("2/4", ["1/2"]) == 1
    monkeypatch.setattr(symbolic, "SECONDS", 0.0)
    assert score("3/6", ["1/2"]) == 0
    monkeypatch.undo()
    assert score("3/6", ["1/2"]) == 1


def test_any_of_several_references_will_do() -> None:
    assert parse_scorer("symbolic")("1/2", ["3", r"\frac{2}{4}"]) == 1


@pytest.mark.parametrize(
    ("answer", "formula"),
    [
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("so $a = 3$ and $b = 4$", "4"),
        ("Long story.\nThe answer is: 7 + 1", "7 + 1"),
        ("x = 3", "3"),
        ("  ", ""),
        (r"\boxed{open", r"\boxed{open"),
    ],
)
def test_the_formula_an_answer_settles_on(answer: str, formula: str) -> None:
    assert final_formula(answer) == formula


@given(st.text(max_size=60))
def test_any_text_is_split_or_refused(text: str) -> None:
    try:
        assert all(token.strip() for token in tokens(text))
    except FormulaError as error:
        assert str(error)


@given(st.text(alphabet="0123456789+-*/^()x!{}%,|\\ []=", max_size=25))
def test_any_formula_is_parsed_or_refused(text: str) -> None:
    try:
        parse_formula(text)
    except (FormulaError, ZeroDivisionError, TypeError, ValueError):
        return


@given(st.fractions(max_denominator=10**6))
def test_a_number_is_itself_however_it_is_written(number: Fraction) -> None:
    top, bottom = number.numerator, number.denominator
    written = rf"\frac{{{top}}}{{{bottom}}}" if top >= 0 else rf"-\frac{{{-top}}}{{{bottom}}}"
    assert is_equal(written, f"{top}/{bottom}")
    assert not is_equal(written, f"{top}/{bottom} + 1")


def test_an_argument_and_a_missing_library_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="symbolic takes no argument"):
        parse_scorer("symbolic:1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'crossroads\[scorers\]'"):
        parse_scorer("symbolic")
